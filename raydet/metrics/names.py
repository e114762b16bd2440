"""Names of the metrics, importable without numpy."""

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
"""COCO's, in pycocotools' order. What is small, medium and large says `evaluate.size_bins_px` of the config, in COCO:
area up to 32^2, up to 96^2, and beyond, in source pixels."""

MISS_RATE = "LAMR"
"""Log-average miss rate, see `raydet.metrics.miss_rate`: in 0..1, and lower is better."""
