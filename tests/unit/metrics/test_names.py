"""Metrics as data."""

from __future__ import annotations

import math

import pytest

from raydet.config import CustomTask, DetectionTask, EventProtocol, Level, Metric, SegmentationTask, Task
from raydet.errors import ConfigError
from raydet.metrics.names import (
    ANOMALY_METRICS,
    MISS_RATE,
    bounds_of,
    deciding_metric,
    groups_of,
    leading_metrics,
    metric_named,
    metrics_of,
)

FLAT = SegmentationTask()
TREE = SegmentationTask(
    levels=(
        Level(name="kind", groups=("flower", "tree"), parents=(0, 0, 1)),
        Level(name="realm", groups=("plant",), parents=(0, 0)),
    )
)
EVENT = DetectionTask(event=EventProtocol(silence_bins=(0, 4)))
CUSTOM = CustomTask(name="count", metrics=(Metric(name="count_error", label="error"),))


@pytest.mark.parametrize(
    "name",
    [
        *("mAP", "AR_small", "AP/a class", MISS_RATE, "agnostic_mAP_75", "mAP_50_silent_9"),
        *(
            "mIoU",
            "pixel_accuracy",
            "boundary_F1",
            "per_batch_mIoU",
            "violation_rate",
            "mIoU_kind",
            "IoU/a class",
        ),
        *(metric.name for metric in ANOMALY_METRICS),
    ],
)
def test_fractions_have_a_range(name: str) -> None:
    assert bounds_of(Metric(name=name, label=name)) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["val_loss", "count_error"])
def test_other_metrics_have_none(name: str) -> None:
    assert bounds_of(Metric(name=name, label=name)) == (-math.inf, math.inf)


@pytest.mark.parametrize("name", ["tree_distance", "tree_distance_all"])
def test_distances_are_not_negative(name: str) -> None:
    assert bounds_of(Metric(name=name, label=name)) == (0.0, math.inf)


def test_a_class_tree_adds_its_levels_and_what_is_measured_on_it() -> None:
    flat, tree = ([metric.name for metric in metrics_of(task)] for task in (FLAT, TREE))
    assert flat[0] == "mIoU"
    added = ["mIoU_kind", "mIoU_realm", "tree_distance", "tree_distance_all", "violation_rate"]
    assert tree == [*flat[:-1], *added, "val_loss"]


def test_a_protocol_for_events_adds_class_agnostic_ap_and_silence() -> None:
    plain, event = ([metric.name for metric in metrics_of(task)] for task in (DetectionTask(), EVENT))
    agnostic = [f"agnostic_{name}" for name in plain[:6]]
    assert event == [*plain[:-1], *agnostic, "mAP_50_silent_0", "mAP_50_silent_4", "val_loss"]
    chosen = deciding_metric(EVENT.model_copy(update={"metric": "agnostic_mAP"}))
    assert (chosen.label, chosen.is_resampleable) == ("mAP (any class)", True)
    assert not metric_named(EVENT, "agnostic_mAP_small").is_resampleable
    *_, silence = groups_of(EVENT)
    assert silence.labels == {"mAP_50_silent_0": "0-3", "mAP_50_silent_4": "4+"}
    without = DetectionTask(event=EventProtocol(silence_bins=()))
    assert groups_of(without) == groups_of(DetectionTask())
    assert [metric.name for metric in metrics_of(without)] == [*plain[:-1], *agnostic, "val_loss"]


def test_mean_iou_decides_unless_the_task_says_otherwise() -> None:
    assert deciding_metric(FLAT).name == "mIoU"
    chosen = deciding_metric(TREE.model_copy(update={"metric": "tree_distance"}))
    assert (chosen.name, chosen.higher_is_better, chosen.is_resampleable) == ("tree_distance", False, True)
    assert [metric.name for metric in leading_metrics(TREE, chosen, 2)] == ["tree_distance", "mIoU"]


@pytest.mark.parametrize(
    ("task", "name", "is_resampleable"),
    [(DetectionTask(), "AP/cat", False), (FLAT, "IoU/cat", True), (TREE, "mIoU_realm", True)],
)
def test_classes_and_levels_have_metrics(task: Task, name: str, is_resampleable: bool) -> None:
    found = metric_named(task, name)
    assert (found.name, found.is_resampleable) == (name, is_resampleable)


@pytest.mark.parametrize(
    ("task", "name", "known"),
    [
        (DetectionTask(), "IoU/cat", "AP/<class>"),
        (FLAT, "AP/cat", "IoU/<class>"),
        (FLAT, "tree_distance", "IoU/<class>"),
        (CUSTOM, "IoU/cat", "val_loss"),
    ],
)
def test_metrics_of_other_tasks_are_refused(task: Task, name: str, known: str) -> None:
    with pytest.raises(ConfigError, match=f"no metric '{name}'; it has .*{known}$"):
        metric_named(task, name)


def test_a_report_compares_the_levels_of_a_class_tree() -> None:
    (group,) = groups_of(TREE)
    assert set(group.labels) <= {metric.name for metric in metrics_of(TREE)}
    assert list(group.labels.values()) == ["classes", "kind", "realm"]
    assert groups_of(FLAT) == groups_of(CUSTOM) == ()
