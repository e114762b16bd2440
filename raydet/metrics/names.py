"""The metrics of every task as data, importable without numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple, get_args

from raydet.config import (
    AnomalyScore,
    CustomTask,
    DetectionTask,
    EventProtocol,
    Metric,
    SegmentationTask,
    Task,
)
from raydet.errors import ConfigError

VAL_LOSS = Metric(name="val_loss", label="val loss", higher_is_better=False)
"""A metric of every task: the training loss on the validation images, without augmentation."""

COCO_METRICS = (
    Metric(name="mAP", label="mAP", is_resampleable=True),
    Metric(name="mAP_50", label="AP50", is_resampleable=True),
    Metric(name="mAP_75", label="AP75", is_resampleable=True),
    Metric(name="mAP_small", label="AP small"),
    Metric(name="mAP_medium", label="AP medium"),
    Metric(name="mAP_large", label="AP large"),
    Metric(name="AR_1", label="AR 1"),
    Metric(name="AR_10", label="AR 10"),
    Metric(name="AR_100", label="AR 100"),
    Metric(name="AR_small", label="AR small"),
    Metric(name="AR_medium", label="AR medium"),
    Metric(name="AR_large", label="AR large"),
)
"""COCO metrics in pycocotools' order. `task.size_bins_px` of the config sets what is small, medium and large; in
COCO: area up to 32^2, up to 96^2, and above, in source pixels."""


class MetricGroup(NamedTuple):
    """Metrics that are shown beside one another."""

    name: str
    title: str
    caption: str
    axis: str
    labels: Mapping[str, str]
    """By metric."""
    is_ordered: bool
    """Neighbours are connected by lines."""


COCO_GROUPS = (
    MetricGroup(
        "thresholds",
        "AP at loose and strict overlap",
        "In the order of the figure above; the distance between the lines is due to badly fitting boxes.",
        "AP",
        {"mAP_50": "IoU 0.50", "mAP_75": "IoU 0.75"},
        is_ordered=True,
    ),
    MetricGroup(
        "sizes",
        "AP by object size",
        "Means over seeds. Sizes without an object in the test images are omitted.",
        "AP",
        {"mAP_small": "small", "mAP_medium": "medium", "mAP_large": "large"},
        is_ordered=False,
    ),
)

METRIC_NAMES = tuple(metric.name for metric in COCO_METRICS)
RECALL_NAMES = tuple(name for name in METRIC_NAMES if name.startswith("AR_"))

MISS_RATE = "LAMR"
"""Log-average miss rate, see `raydet.metrics.miss_rate`: in 0..1, and lower is better."""
PER_CLASS = "AP/"
"""Prefix of AP at IoU .5:.95 of one class."""

AGNOSTIC = "agnostic_"
"""Prefix of AP with all classes taken for one, see `raydet.metrics.event_evaluation`."""
AGNOSTIC_METRICS = tuple(
    metric.model_copy(update={"name": f"{AGNOSTIC}{metric.name}", "label": f"{metric.label} (any class)"})
    for metric in COCO_METRICS[:6]
)
SILENT = "mAP_50_silent_"
"""Prefix of AP50 of the objects of one bin of silent ages, see `raydet.metrics.silence`; the smallest age follows."""

PER_BATCH_IOU = "per_batch_mIoU"
MASK_METRICS = (
    Metric(name="mIoU", label="mIoU", is_resampleable=True),
    Metric(name="pixel_accuracy", label="pixel acc.", is_resampleable=True),
    Metric(name="mean_accuracy", label="class acc.", is_resampleable=True),
    Metric(name="boundary_F1", label="boundary F1", is_resampleable=True),
    Metric(name="per_image_mIoU", label="mIoU per image", is_resampleable=True),
    Metric(name=PER_BATCH_IOU, label="mIoU per batch"),
)
"""Metrics of every segmentation, see `raydet.metrics.confusion`. `per_batch_mIoU` is the mean over the evaluation's
batches of each one's mIoU, as some published code has it: it changes with `train.eval_batch` and with the order of the
images, and is there to be compared with such figures only."""
TREE_METRICS = (
    Metric(name="tree_distance", label="tree dist.", higher_is_better=False, digits=3, is_resampleable=True),
    Metric(
        name="tree_distance_all",
        label="tree dist. (all)",
        higher_is_better=False,
        digits=3,
        is_resampleable=True,
    ),
    Metric(name="violation_rate", label="violations", higher_is_better=False, is_resampleable=True),
)
"""Those of a segmentation with a class tree, after mIoU of each level."""
LEVEL_IOU = "mIoU_"
"""Prefix of the mIoU of one level of the class tree."""
PER_CLASS_IOU = "IoU/"
"""Prefix of the IoU of one class."""

AUROC, AP, FPR95 = "AUROC", "AP", "FPR95"
"""Metrics of anomaly maps over all pixels, see `raydet.metrics.anomaly`; of FPR95, lower is better."""
PER_IMAGE_AUROC, PER_IMAGE_AP = f"per_image_{AUROC}", f"per_image_{AP}"
PER_IMAGE_FPR95, OFFICIAL_FPR95 = f"per_image_{FPR95}", f"official_{FPR95}"
"""The same as means over the images with pixels of both kinds; `official_FPR95` is the one of StreetHazards' code."""
ANOMALY_METRICS = (
    Metric(name=AUROC, label=AUROC, is_resampleable=True, is_final=True),
    Metric(name=AP, label=AP, is_resampleable=True, is_final=True),
    Metric(name=FPR95, label=FPR95, higher_is_better=False, is_resampleable=True, is_final=True),
    Metric(name=PER_IMAGE_AUROC, label="AUROC per image", is_resampleable=True, is_final=True),
    Metric(name=PER_IMAGE_AP, label="AP per image", is_resampleable=True, is_final=True),
    Metric(
        name=PER_IMAGE_FPR95,
        label="FPR95 per image",
        higher_is_better=False,
        is_resampleable=True,
        is_final=True,
    ),
    Metric(
        name=OFFICIAL_FPR95,
        label="FPR95 official",
        higher_is_better=False,
        is_resampleable=True,
        is_final=True,
    ),
)
"""Pooled over all pixels, then per image."""

ANOMALY_SCORES: tuple[AnomalyScore, ...] = get_args(AnomalyScore)
CALIBRATED_SCORES = ANOMALY_SCORES[4:]
"""Those that need statistics of the run's own images."""

MASK_NAMES = tuple(metric.name for metric in (*MASK_METRICS, *TREE_METRICS))
TREE_DISTANCES = ("tree_distance", "tree_distance_all")
FRACTIONS = (
    *METRIC_NAMES,
    MISS_RATE,
    *(metric.name for metric in (*MASK_METRICS, *ANOMALY_METRICS)),
    "violation_rate",
)
PREFIXES_OF_FRACTIONS = (PER_CLASS, PER_CLASS_IOU, LEVEL_IOU, AGNOSTIC, SILENT)


def silence_metrics(protocol: EventProtocol) -> tuple[Metric, ...]:
    """AP50 by the number of windows since the last event in the box.

    >>> [metric.label for metric in silence_metrics(EventProtocol(silence_bins=(0, 1, 3)))]
    ['AP50 silent 0', 'AP50 silent 1-2', 'AP50 silent 3+']
    """
    bins = protocol.silence_bins
    lasts = [f"-{end - 1}" if end - 1 > start else "" for start, end in pairwise(bins)] + ["+"]
    return tuple(
        Metric(name=f"{SILENT}{start}", label=f"AP50 silent {start}{last}", is_resampleable=True)
        for start, last in zip(bins, lasts, strict=False)
    )


def bounds_of(metric: Metric) -> tuple[float, float]:
    """The smallest and the largest value of a metric: 0 and 1 for AP, AUROC, recall, miss rate, IoU, accuracy and
    other fractions; 0 and infinity for distances on a class tree; infinite for losses and for metrics of custom tasks,
    whose range is unknown.
    """
    if metric.name in FRACTIONS or metric.name.startswith(PREFIXES_OF_FRACTIONS):
        return (0.0, 1.0)
    return (0.0 if metric.name in TREE_DISTANCES else -math.inf, math.inf)


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """The metrics of a task in the order of tables, without those of single classes."""
    match task:
        case DetectionTask(miss_rate=True):
            return (*COCO_METRICS, Metric(name=MISS_RATE, label=MISS_RATE, higher_is_better=False), VAL_LOSS)
        case DetectionTask(event=EventProtocol() as protocol):
            return (*COCO_METRICS, *AGNOSTIC_METRICS, *silence_metrics(protocol), VAL_LOSS)
        case DetectionTask():
            return (*COCO_METRICS, VAL_LOSS)
        case SegmentationTask(levels=levels, anomaly=anomaly):
            of_levels = (
                Metric(name=f"{LEVEL_IOU}{level.name}", label=f"mIoU {level.name}", is_resampleable=True)
                for level in levels
            )
            of_tree = (*of_levels, *TREE_METRICS) if levels else ()
            return (*MASK_METRICS, *of_tree, *(ANOMALY_METRICS if anomaly is not None else ()), VAL_LOSS)
        case CustomTask(metrics=metrics):
            return (*metrics, VAL_LOSS)


def metric_named(task: Task, name: str) -> Metric:
    """The metric of a task by its name.

    Raises:
        ConfigError: the task has no such metric.
    """
    known = metrics_of(task)
    for metric in known:
        if metric.name == name:
            return metric
    prefix: str | None
    match task:
        case DetectionTask():
            prefix, is_resampleable = PER_CLASS, False
        case SegmentationTask():
            prefix, is_resampleable = PER_CLASS_IOU, True
        case CustomTask():
            prefix, is_resampleable = None, False
    if prefix is not None and name.startswith(prefix):
        return Metric(name=name, label=name, is_resampleable=is_resampleable)
    names = [metric.name for metric in known] + ([] if prefix is None else [f"{prefix}<class>"])
    raise ConfigError(f"the task has no metric {name!r}; it has {', '.join(names)}")


def deciding_metric(task: Task) -> Metric:
    """The metric by which checkpoints, epochs and runs are ranked: `task.metric`, else the task's first.

    Raises:
        ConfigError: the task has no metric of that name, or it is measured at the end only.
    """
    metric = metrics_of(task)[0] if task.metric is None else metric_named(task, task.metric)
    if metric.is_final:
        raise ConfigError(
            f"task.metric={metric.name} is measured at the end of a run, on test images, and cannot choose its "
            f"checkpoints; leave it at {metrics_of(task)[0].name}"
        )
    return metric


def leading_metrics(task: Task, decider: Metric, count: int = 3) -> list[Metric]:
    """The few metrics that short tables show: the deciding one, and the first of the task's."""
    metrics = [decider, *(metric for metric in metrics_of(task) if metric.name != decider.name)]
    return metrics[:count]


def groups_of(task: Task) -> tuple[MetricGroup, ...]:
    """The groups of metrics that a report compares in figures of their own."""
    match task:
        case DetectionTask(event=EventProtocol() as protocol) if protocol.silence_bins:
            silence = MetricGroup(
                "silence",
                "AP against silence",
                "AP50 by the number of windows since the last event in an object's box: what is found without any "
                "is remembered. In the order of the figure above.",
                "AP50",
                {
                    metric.name: metric.label.removeprefix("AP50 silent ")
                    for metric in silence_metrics(protocol)
                },
                is_ordered=True,
            )
            return (*COCO_GROUPS, silence)
        case DetectionTask():
            return COCO_GROUPS
        case SegmentationTask(levels=levels) if levels:
            return (
                MetricGroup(
                    "levels",
                    "mIoU on every level of the class tree",
                    "In the order of the figure above; the distance between the lines is due to classes taken for "
                    "others of their group.",
                    "mIoU",
                    {"mIoU": "classes", **{f"{LEVEL_IOU}{level.name}": level.name for level in levels}},
                    is_ordered=True,
                ),
            )
        case _:
            return ()
