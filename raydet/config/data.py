"""What the detector is trained on: source, split, canvas, augmentation, normalisation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydet.config.augmentation import Augmentation
from raydet.config.base import Config
from raydet.config.sources import ShardsSource, Source, SyntheticSource

Modality = Literal["rgb", "thermal", "event"]
SplitName = Literal["train", "val", "test", "calibration"]


class GroupSplit(Config):
    """Whole sequences go to one side, so that near-duplicate frames never straddle.

    Groups come from the source. A source that cannot tell is cut into `num_blocks` runs of consecutive images.
    """

    kind: Literal["group"] = "group"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Never seen by a run: `raydet evaluate --split test`. Other images validate, however large it is."""
    calibration_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For what is fitted after training, e.g. thresholds. Never seen by a run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    num_blocks: Annotated[int, Field(ge=2)] = 10

    @model_validator(mode="after")
    def _some_images_train(self) -> Self:
        if self.val_fraction + self.test_fraction + self.calibration_fraction >= 1:
            raise ValueError(
                "data.split: val_fraction, test_fraction and calibration_fraction must sum to less than 1"
            )
        return self


class FrameSplit(Config):
    """Single images in file order, shuffled: the published protocol (9,750 images -> 7,800 and 1,950).

    Frames of one sequence fall on both sides; use it to compare with published figures only.
    """

    kind: Literal["frame"] = "frame"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42


class FirstSplit(Config):
    """The first `num_train` images train; validation is on the same images (`overfit`) or on the rest."""

    kind: Literal["first"] = "first"
    num_train: Annotated[int, Field(ge=1)]
    overfit: bool = False
    """Validate on the training images: a check that the model can learn at all, not a result."""


class NamedSplit(Config):
    """The parts that the set itself has: the directories of an image's id (`val/0001`) say which.

    Of several names the longest counts: with `train: ["training"], calibration: ["training/t3"]`, images of the town
    `t3` calibrate. `--data` chooses this split for sets with masks that come in such parts.
    """

    kind: Literal["named"] = "named"
    train: tuple[str, ...] = ("train", "training")
    val: tuple[str, ...] = ("val", "valid", "validation")
    test: tuple[str, ...] = ("test", "testing")
    """Never seen by a run, as `calibration`: `raydet evaluate --split test`."""
    calibration: tuple[str, ...] = ("calibration",)

    @model_validator(mode="after")
    def _a_name_is_one_part(self) -> Self:
        names = [*self.train, *self.val, *self.test, *self.calibration]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"data.split names {twice[0]!r} twice; a directory belongs to one part")
        return self


class Frames(Config):
    """Single images, in an order of their own in each pass through the data."""

    kind: Literal["frames"] = "frames"


class Clips(Config):
    """Windows of consecutive frames of the source's sequences, for models with memory: see `raydet.data.clips`."""

    kind: Literal["clips"] = "clips"
    frames: Annotated[int, Field(ge=1)] = 5
    """Frames per window."""
    random_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Part of each batch that reads windows anywhere, without memory; the rest streams through the sequences."""


Sampling = Annotated[Frames | Clips, Field(discriminator="kind")]
Split = Annotated[GroupSplit | FrameSplit | FirstSplit | NamedSplit, Field(discriminator="kind")]


class EventSimulation(Config):
    """An event modality made from RGB, for sets that were recorded without an event camera. See
    `raydet.data.events` for the model and its limits; it is shown as simulated wherever it is shown.
    """

    threshold: Annotated[float, Field(gt=0, le=5)] = 0.25
    """Change of the natural logarithm of the intensity that fires one event; real cameras: about 0.2 to 0.5."""
    threshold_sigma: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Deviation of the threshold from pixel to pixel, in the same unit; the same pixels in every image."""
    between: Literal["motion", "frames"] = "motion"
    """motion: a still is moved as if the camera had moved. frames: since the previous image of the same sequence (in
    the order of the source); the first one of a sequence is moved."""
    motion_px: Annotated[float, Field(gt=0, le=64)] = 4.0
    """Longest simulated motion within the window of the event image, in source pixels; each image's is drawn from
    half of it to all of it, in any direction."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of the pixels that fire once by themselves."""
    full_scale: Annotated[int, Field(ge=1, le=255)] = 4
    """Events of a pixel, of either polarity, that read 255; fewer read in proportion."""
    replaces_own: bool = False
    """Leave out the event modality that the source has. `npy_yolo` always has one, be it empty."""
    seed: Annotated[int, Field(ge=0)] = 0


class Normalization(Config):
    """(x - mean) / std on a 0..1 scale; one value each for all channels, or one per channel."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class DataConfig(Config):
    """Everything between the files and the batch."""

    source: Source = SyntheticSource()
    classes: tuple[str, ...] = ("circle", "square", "triangle")
    """Class names in label order."""
    missing: tuple[Modality, ...] = ()
    """Modalities that the model reads and the source does not have: fed as zeros after normalisation."""
    simulate_events: EventSimulation | None = None
    """Make the event modality from RGB; null: take what the source has."""
    canvas_hw: tuple[
        Annotated[int, Field(ge=32, multiple_of=32)], Annotated[int, Field(ge=32, multiple_of=32)]
    ]
    """Height and width that every image is letterboxed to (top left), in pixels; multiples of 32, the largest
    stride."""
    split: Split = GroupSplit()
    sampling: Sampling = Frames()
    augmentation: Augmentation = Augmentation()
    rgb: Normalization = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    thermal: Normalization = Normalization(mean=(0.5,), std=(0.225,))
    event: Normalization = Normalization(mean=(0.0,), std=(0.5,))
    """Mean 0, so that "no event" and a missing event camera are the same input."""
    event_channels: Annotated[int, Field(ge=1)] = 1
    """Of the event modality: 1 for an image, 20 for a histogram of two polarities in ten bins of time."""
    loader_threads: Annotated[int, Field(ge=0)] = 0
    """DataLoader processes per worker; 0 loads in the training process."""

    @model_validator(mode="after")
    def _simulated_is_not_missing(self) -> Self:
        if self.simulate_events is not None and "event" in self.missing:
            raise ValueError("missing names event, which simulate_events makes; take one of them out")
        return self

    @model_validator(mode="after")
    def _clips_are_no_mosaics(self) -> Self:
        if isinstance(self.sampling, Clips) and self.augmentation.mosaic > 0:
            raise ValueError(
                "augmentation.mosaic must be 0 with sampling.kind=clips: its images are not consecutive"
            )
        return self

    @model_validator(mode="after")
    def _simulated_events_are_images(self) -> Self:
        if self.simulate_events is not None and self.event_channels != 1:
            raise ValueError(
                f"simulate_events makes one channel: set event_channels to 1, got {self.event_channels}"
            )
        return self

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every modality."""
        return {"rgb": 3, "thermal": 1, "event": self.event_channels}

    @property
    def clip_frames(self) -> int:
        """Images of a sample in a batch."""
        return self.sampling.frames if isinstance(self.sampling, Clips) else 1

    @property
    def simulated(self) -> tuple[Modality, ...]:
        """Modalities that no sensor has recorded."""
        if self.simulate_events is not None:
            return ("event",)
        return self.source.simulated if isinstance(self.source, ShardsSource) else ()

    @property
    def simulation_note(self) -> str:
        """What has to be said beside every result; empty where nothing is simulated."""
        names = " and ".join(self.simulated)
        return f"The {names} modality is simulated from rgb, no camera has recorded it." if names else ""

    def shown_name(self, modality: str) -> str:
        """How to call a modality where people look.

        >>> data = DataConfig(canvas_hw=(64, 64), simulate_events=EventSimulation())
        >>> data.shown_name("rgb"), data.shown_name("event")
        ('rgb', 'event (simulated)')
        """
        return f"{modality} (simulated)" if modality in self.simulated else modality
