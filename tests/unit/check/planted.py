"""A clean set in memory, and faults to plant in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from raydet.check.examine import Settings
from raydet.check.gather import Gathered
from raydet.check.run import check_source
from raydet.config import FirstSplit
from raydet.data.sources.bad_samples import LeftOut
from raydet.data.sources.base import Targets
from raydet.errors import DataError
from raydet.structures import Boxes, Sample

CLASSES = ("person", "car")
SIZE_HW = (120, 160)
NUM_IMAGES, NUM_TRAIN = 4, 2


class MemorySet:
    """A source of given samples; an image in `broken` cannot be decoded."""

    def __init__(self, samples: list[Sample], *, classes: tuple[str, ...] = CLASSES) -> None:
        self.samples = samples
        self.classes = classes
        self.modalities = tuple(samples[0].modalities)
        self.image_ids = [sample.image_id for sample in samples]
        self.group_ids = [""] * len(samples)
        self.left_out: list[LeftOut] = []
        self.broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"{self.image_ids[index]}.jpg: the image is truncated; copy it again")
        return self.samples[index]

    def targets(self, index: int) -> Targets:
        sample = self.samples[index]
        return sample.target, sample.source_hw


def scene(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """RGB uint8 [3, H, W] and thermal uint8 [1, H, W] of one scene: the same outlines, other values."""
    height, width = SIZE_HW
    heights = ndimage.zoom(rng.normal(size=(4, 5)), (height / 4, width / 5), order=1) * 25
    ground = np.round(ndimage.gaussian_filter(rng.normal(size=SIZE_HW), 4) * 14)
    grey = np.clip(120 + heights + 18 * ground, 20, 235)
    tint = rng.integers(-15, 16, (3, 1, 1))
    rgb = np.clip(grey[None] + tint + rng.normal(size=(3, *SIZE_HW)) * 2, 0, 254)
    thermal = np.clip(150 - 12 * ground + rng.normal(size=SIZE_HW) * 2, 1, 254)
    return torch.from_numpy(rgb.astype(np.uint8)), torch.from_numpy(thermal.astype(np.uint8))[None]


def clean_samples(seed: int, count: int = NUM_IMAGES) -> list[Sample]:
    """Images with one box of each class."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        rgb, thermal = scene(rng)
        corner = rng.integers(0, 30, (2, 2)) + np.array([[0, 0], [80, 40]])
        boxes = np.concatenate([corner, corner + rng.integers(8, 40, (2, 2))], axis=1)
        samples.append(
            Sample(
                image_id=f"image {number}",
                group_id="",
                modalities={"rgb": rgb, "thermal": thermal},
                target=Boxes(torch.from_numpy(boxes).float(), torch.tensor([0, 1])),
                source_hw=SIZE_HW,
                valid_hw=SIZE_HW,
            )
        )
    return samples


def checked(source: MemorySet, *, num_train: int = NUM_TRAIN, workers: int = 0) -> Gathered:
    """The check as the command does it."""
    settings = Settings(classes=source.classes)
    return check_source(source, FirstSplit(num_train=num_train), settings, workers=workers)


def kinds_of(found: Gathered) -> dict[str, int]:
    """Number of findings by kind."""
    return {kind: len(items) for kind, items in found.by_kind().items()}


def with_box(sample: Sample, box: tuple[float, ...], label: int = 0) -> Sample:
    """One box more."""
    boxes_xyxy = torch.cat([sample.boxes_xyxy, torch.tensor([box])])
    return replace(sample, target=Boxes(boxes_xyxy, torch.cat([sample.labels, torch.tensor([label])])))


def with_pixels(sample: Sample, **changed: Tensor) -> Sample:
    """Other pixels in some modalities."""
    return replace(sample, modalities=sample.modalities | changed)


def as_float(x: Tensor) -> Tensor:
    return x.float() / 255


Fault = Callable[[MemorySet, int], None]
"""Changes an image of the set."""


def on_sample(change: Callable[[Sample], Sample]) -> Fault:
    def plant(source: MemorySet, index: int) -> None:
        source.samples[index] = change(source.samples[index])

    return plant


def _nan(sample: Sample) -> Sample:
    pixels = as_float(sample.modalities["thermal"])
    pixels[0, 3, 4] = float("nan")
    return with_pixels(sample, thermal=pixels)


def _saturated(sample: Sample) -> Sample:
    pixels = sample.modalities["thermal"].clone()
    pixels[:, :, :90] = 255
    return with_pixels(sample, thermal=pixels)


def _recompressed(source: MemorySet, index: int, twin: int) -> None:
    """Another image, a little brighter."""
    changed = {
        name: (x.float() * 0.97).to(torch.uint8) for name, x in source.samples[twin].modalities.items()
    }
    source.samples[index] = with_pixels(source.samples[index], **changed)


def _other(index: int, *, same_side: bool) -> int:
    """An image on the same or on the other side of the split."""
    if same_side:
        return index - 1 if index in (NUM_TRAIN - 1, NUM_IMAGES - 1) else index + 1
    return 0 if index >= NUM_TRAIN else NUM_TRAIN


def _copied(source: MemorySet, index: int, *, same_side: bool, names: tuple[str, ...]) -> None:
    twin = source.samples[_other(index, same_side=same_side)]
    source.samples[index] = with_pixels(
        source.samples[index], **{name: twin.modalities[name] for name in names}
    )


FAULTS: dict[str, tuple[Fault, frozenset[str]]] = {
    "box_not_finite": (on_sample(lambda s: with_box(s, (1, 1, float("nan"), 5))), frozenset()),
    "box_empty": (on_sample(lambda s: with_box(s, (50, 50, 50, 60))), frozenset()),
    "box_outside": (on_sample(lambda s: with_box(s, (150, 100, 170, 119))), frozenset()),
    "unknown_class": (on_sample(lambda s: with_box(s, (70, 10, 75, 20), label=2)), frozenset()),
    "box_twice": (on_sample(lambda s: with_box(s, tuple(s.boxes_xyxy[0].tolist()), 0)), frozenset()),
    "box_two_classes": (on_sample(lambda s: with_box(s, tuple(s.boxes_xyxy[0].tolist()), 1)), frozenset()),
    "box_tiny": (on_sample(lambda s: with_box(s, (70, 10, 71, 30))), frozenset()),
    "empty": (
        on_sample(lambda s: replace(s, target=Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))),
        frozenset(),
    ),
    "not_finite": (on_sample(_nan), frozenset()),
    "out_of_range": (
        on_sample(lambda s: with_pixels(s, thermal=as_float(s.modalities["thermal"]) * 3)),
        frozenset({"saturated"}),
    ),
    "constant": (
        on_sample(lambda s: with_pixels(s, thermal=torch.full_like(s.modalities["thermal"], 7))),
        frozenset(),
    ),
    "saturated": (on_sample(_saturated), frozenset({"cannot_tell"})),
    "misaligned": (
        on_sample(lambda s: with_pixels(s, thermal=s.modalities["thermal"].roll((7, -10), (1, 2)))),
        frozenset(),
    ),
    "size_mismatch": (
        on_sample(lambda s: with_pixels(s, thermal=s.modalities["thermal"][:, :100])),
        frozenset(),
    ),
    "duplicate": (
        lambda s, i: _copied(s, i, same_side=True, names=("rgb", "thermal")),
        frozenset(),
    ),
    "leak": (lambda s, i: _copied(s, i, same_side=False, names=("rgb", "thermal")), frozenset()),
    "shared_file": (lambda s, i: _copied(s, i, same_side=True, names=("rgb",)), frozenset({"cannot_tell"})),
    "near_leak": (lambda s, i: _recompressed(s, i, _other(i, same_side=False)), frozenset()),
    "unreadable": (lambda s, i: s.broken.add(i), frozenset()),
    "left_out": (
        lambda s, i: s.left_out.append(
            LeftOut(f"gone {i}", f"/data/{i}.txt, row 3: a box is empty, got 0 x 4")
        ),
        frozenset(),
    ),
}
"""What to plant under the name of the kind that has to come out, and what may come with it."""
