"""What a run has to learn and is measured by. Runs are comparable only if they have the same task."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raydet.config.base import Config

COCO_BINS_PX = (32.0, 96.0)

Edge = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Metric(Config):
    """A number that runs are measured by: all that ranking, retention, tables and the live view need to know of it."""

    name: str
    """Key in results, CSV files and MLflow."""
    label: str
    """Head of a column."""
    higher_is_better: bool = True
    digits: Annotated[int, Field(ge=0, le=9)] = 4
    """Decimals in tables."""
    is_resampleable: bool = False
    """The records of an evaluation tell its value on any resampled set of images."""
    is_final: bool = False
    """Measured at the end of a run only, so that it cannot choose checkpoints."""

    def utility(self, value: float | None) -> float:
        """A number that is the larger the better the value is; -inf if there is no value.

        >>> Metric(name="loss", label="loss", higher_is_better=False).utility(0.5)
        -0.5
        """
        if value is None or math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def text(self, value: float | None) -> str:
        """The value as tables show it.

        >>> Metric(name="mAP", label="mAP", digits=3).text(0.12345)
        '0.123'
        """
        return "-" if value is None else f"{value:.{self.digits}f}"


EventCamera = Literal["gen1", "gen4"]
"""Prophesee's sensors of 304 x 240 and of 1280 x 720 pixels."""


class EventProtocol(Config):
    """How detections in recordings of an event camera are measured, see `raydet.metrics.event_filter`; the defaults are
    those of Prophesee's toolbox. Runs with different protocols are not compared."""

    camera: EventCamera = "gen4"
    """Whose smallest boxes count: gen4 has diagonals of 60 and sides of 20 pixels, gen1 half of that."""
    is_halved: bool = False
    """The recordings have half of the sensor's resolution: halves these two."""
    min_diagonal_px: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Boxes with a shorter diagonal do not count, in source pixels; null: the camera's."""
    min_side_px: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Boxes with a shorter side do not count, in source pixels; null: the camera's."""
    skip_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 500.0
    """Boxes up to this time from the start of their sequence do not count."""
    window_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 50.0
    """Length of a frame's window; a frame's time is the end of its window, the first one's `window_ms`."""
    tolerance_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 50.0
    """A detection counts for the labels whose time differs from its own by this or less, even for several. Labels in
    every window need less than `window_ms`, e.g. 0."""
    silence_bins: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 3, 5, 9)
    """Bins of AP50 by the number of windows since the last event in the box: the smallest number of each; (): not
    measured."""

    @model_validator(mode="after")
    def _bins_begin_at_zero(self) -> Self:
        bins = self.silence_bins
        if bins and (bins[0] != 0 or any(low >= high for low, high in pairwise(bins))):
            raise ValueError(f"task.event.silence_bins must ascend from 0, got {list(bins)}")
        return self


class DetectionTask(Config):
    """Boxes and labels; COCO's metrics and others."""

    kind: Literal["detection"] = "detection"
    metric: str | None = None
    """The metric that decides which checkpoints are kept, which epoch and which run is the best. null: mAP; a study
    sets its own."""
    size_bins_px: tuple[Edge, Edge] = COCO_BINS_PX
    """Where small ends and large begins for mAP_small ... AR_large: sides of a square of the same area, in source
    pixels. The default is COCO's, made for images of about 480 x 640."""
    size_bins_fraction: tuple[Edge, Edge] | None = None
    """The bins as parts of the square root of the image's area, so that a bin is the same share of the image at
    every resolution; replaces `size_bins_px`. COCO's bins are about (0.058, 0.173) of its images."""
    miss_rate: bool = False
    """Add LAMR, the log-average miss rate (0..1, lower is better), as the mean over the classes. Data sources know no
    regions to ignore: figures of KAIST's own protocol come from `raydet score kaist`."""
    miss_rate_min_height_px: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 55.0
    """Lower objects (source pixels) need not be found for LAMR, and finding them is no mistake. KAIST's "reasonable"
    set has 55."""
    event: EventProtocol | None = None
    """The protocol for recordings of an event camera; adds class-agnostic AP, and AP against silence. null: every box
    of every image counts."""

    @model_validator(mode="after")
    def _bins_ascend(self) -> Self:
        for name in ("size_bins_px", "size_bins_fraction"):
            edges = getattr(self, name)
            if edges is not None and edges[0] >= edges[1]:
                raise ValueError(f"task.{name} must be two ascending numbers, got {list(edges)}")
        if self.size_bins_fraction is not None and self.size_bins_px != COCO_BINS_PX:
            raise ValueError("task.size_bins_px and task.size_bins_fraction exclude one another; set one")
        if self.event is not None and self.miss_rate:
            raise ValueError(
                "task.miss_rate counts mistakes per image, and task.event leaves images out; set one of them"
            )
        return self


class Level(Config):
    """A level of a class tree: groups of what the level below has."""

    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")]
    """A word, e.g. `family`: part of the names of metrics and of directories."""
    groups: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the groups."""
    parents: Annotated[tuple[int, ...], Field(min_length=1)]
    """For every class or group of the level below, in order, the index of its group here."""

    @model_validator(mode="after")
    def _is_a_level(self) -> Self:
        if len(set(self.groups)) != len(self.groups):
            raise ValueError(
                f"level {self.name}: expected different names of groups, got {list(self.groups)}"
            )
        if outside := sorted(set(self.parents) - set(range(len(self.groups)))):
            raise ValueError(
                f"level {self.name}: expected parents in 0..{len(self.groups) - 1}, got {outside[0]}"
            )
        if childless := [name for i, name in enumerate(self.groups) if i not in self.parents]:
            raise ValueError(f"level {self.name}: no class belongs to {', '.join(childless)}")
        return self


AnomalyScore = Literal[
    "max_softmax",
    "max_logit",
    "energy",
    "entropy",
    "standardised_max_logit",
    "smoothed_max_logit",
    "mahalanobis",
    "heat",
]
"""Scores of pixels, see `raydet.ops.anomaly_scores`; `smoothed_max_logit` is the standardised one with its boundary
suppression and its smoothing."""


class AnomalyConfig(Config):
    """Measure at the end of a run how well a score finds the anomalies in the test images of `data.split`. Nothing is
    chosen by it: neither a checkpoint nor a threshold."""

    score: AnomalyScore = "energy"
    """The last four are fitted on the calibration images of `data.split`."""


class SegmentationTask(Config):
    """The class of every pixel; mIoU and others, on every level of a class tree if there is one."""

    kind: Literal["segmentation"] = "segmentation"
    metric: str | None = None
    """As in detection; null: mIoU."""
    levels: tuple[Level, ...] = ()
    """The class tree above `data.classes`, from the level above the classes to the roots; (): none. `--data` fills it
    in from the set's classes.yaml."""
    boundary_px: Annotated[int, Field(ge=1)] = 2
    """Boundaries that are at most so far apart, in source pixels, match: for boundary_F1."""
    decoding: Literal["consistent", "independent"] = "consistent"
    """How a model with outputs for every level predicts: the best path from a root to a class, or the best output of
    each level for itself, which may contradict the tree."""
    back_off: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A pixel whose class has less than this probability gets its lowest group that has it, in predictions; null:
    always a class."""
    anomaly: AnomalyConfig | None = None
    """null: nothing about anomalies is measured at the end of a run; `raydet anomalies` can do it later."""

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"task.levels: expected different names, got {names}")
        for below, above in pairwise(self.levels):
            if len(above.parents) != len(below.groups):
                raise ValueError(
                    f"task.levels: expected {len(below.groups)} parents in {above.name}, one for each group of "
                    f"{below.name}, got {len(above.parents)}"
                )
        if self.back_off is not None and not self.levels:
            raise ValueError("task.back_off needs a class tree: set task.levels, or leave it out")
        return self


class CustomTask(Config):
    """A task that is defined outside raydet. Its code comes with a space file or is passed to `run_process`; everything
    else needs to know no more of it than this."""

    kind: Literal["custom"] = "custom"
    name: str
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)]
    """In the order of tables; the first decides unless `metric` says otherwise."""
    metric: str | None = None
    settings: dict[str, Any] = Field(default={})
    """Read by the task's own code."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # a dict has no hash of its own


Task = Annotated[DetectionTask | SegmentationTask | CustomTask, Field(discriminator="kind")]
