"""Names of the COCO metrics, importable without numpy."""

METRIC_NAMES = (
    "mAP",
    "mAP_50",
    "mAP_75",
    "mAP_small",
    "mAP_medium",
    "mAP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""In pycocotools' order. small: area < 32^2, medium: < 96^2, large: the rest, in source pixels."""
