"""What the detector is trained on: source, split, canvas, augmentation, normalisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raydet.config.base import Config
from raydet.config.sources import Source, SyntheticSource

Modality = Literal["rgb", "thermal", "event"]

MODALITY_CHANNELS: dict[str, int] = {"rgb": 3, "thermal": 1, "event": 1}


class GroupSplit(Config):
    """Whole sequences go to one side, so that near-duplicate frames never straddle.

    Groups come from the source. A source that cannot tell is cut into `num_blocks` runs of consecutive pictures.
    """

    kind: Literal["group"] = "group"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    num_blocks: Annotated[int, Field(ge=2)] = 10


class FrameSplit(Config):
    """Single pictures in file order, shuffled: the published protocol (9,750 pictures -> 7,800 and 1,950).

    Frames of one sequence fall on both sides; use it to compare with published figures only.
    """

    kind: Literal["frame"] = "frame"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42


class FirstSplit(Config):
    """The first `num_train` pictures train; validation is on the same pictures (`overfit`) or on the rest."""

    kind: Literal["first"] = "first"
    num_train: Annotated[int, Field(ge=1)]
    overfit: bool = False
    """Validate on the training pictures: a check that the model can learn at all, not a result."""


Split = Annotated[GroupSplit | FrameSplit | FirstSplit, Field(discriminator="kind")]


class Augmentation(Config):
    """Random changes that move all modalities and boxes together."""

    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Horizontal flip."""
    scale_jitter: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.8, 1.25)
    """Range of the factor on the letterbox's scale; above 1 the picture is cropped to the canvas. (1, 1) is off."""
    min_box_px: Annotated[float, Field(ge=0)] = 2.0
    """Boxes whose shorter side is less than this after the change are dropped."""


class Normalization(Config):
    """(x - mean) / std per channel, on a 0..1 scale."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class DataConfig(Config):
    """Everything between the files and the batch."""

    source: Source = SyntheticSource()
    classes: tuple[str, ...] = ("circle", "square", "triangle")
    """Class names in label order."""
    missing: tuple[Modality, ...] = ()
    """Modalities that the model reads and the source does not have: fed as zeros after normalisation."""
    canvas_hw: tuple[
        Annotated[int, Field(ge=32, multiple_of=32)], Annotated[int, Field(ge=32, multiple_of=32)]
    ]
    """Height and width that every picture is letterboxed to (top left), in pixels; multiples of 32, the largest
    stride."""
    split: Split = GroupSplit()
    augmentation: Augmentation = Augmentation()
    rgb: Normalization = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    thermal: Normalization = Normalization(mean=(0.5,), std=(0.225,))
    event: Normalization = Normalization(mean=(0.0,), std=(0.5,))
    """Mean 0, so that "no event" and a missing event camera are the same input."""
    loader_threads: Annotated[int, Field(ge=0)] = 0
    """DataLoader processes per worker; 0 loads in the training process."""
