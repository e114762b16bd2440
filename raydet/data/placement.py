"""One image at its place: shifted sensors, cut, resized, flipped, with other values; a mosaic of four of them.

The image is cut and shifted by whole source pixels first, and resampled once, to the size at which it stays.

Legend: C channels, H W height and width, N boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raydet.config import Augmentation
from raydet.data.geometry import cut, flip_horizontally, letterboxed_hw, resize, shifted
from raydet.data.photometric import with_other_values
from raydet.data.randomness import Key, random_stream
from raydet.structures import Sample

NUM_PARTNERS = 3
CENTRE = (0.3, 0.7)
"""Where the four quarters of a mosaic meet: range of the fraction of the canvas' height, and of its width."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where an image may lie."""

    hw: tuple[int, int]
    """Larger images are cut to it."""
    canvas_hw: tuple[int, int]
    """Sets the scale: at factor 1 the image just fits the canvas."""
    is_filled: bool = False
    """Enlarge the image where it would not cover the room."""


def placed(sample: Sample, augmentation: Augmentation, room: Room, key: tuple[Key, ...]) -> Sample:
    """The augmented image, no larger than its room, without padding; boxes that were cut too far are dropped.

    Args:
        sample: in source pixels.
        key: of the random draws.
    """
    flip, scale, down, right = random_stream(*key).random_sample(4)
    sample = misaligned(sample, augmentation.misalignment_px, key)
    areas_N = _areas(sample)
    kept_N: Tensor | None = None
    if room.is_filled:
        kept_N = _rows_to_keep(sample, "one", key)
    elif augmentation.crop.min_fraction < 1:
        kept_N = _rows_to_keep(sample, augmentation.crop.keep, key)
        sample = random_crop(sample, augmentation.crop.min_fraction, kept_N, key)
    low, high = augmentation.scale_jitter
    before_hw, after_hw = sample.canvas_hw, _size(sample, room, low + (high - low) * scale)
    sample = _cut_to(resize(sample, after_hw), room.hw, kept_N, down=down, right=right)
    if flip < augmentation.flip_probability:
        sample = flip_horizontally(sample)
    sample = with_other_values(sample, augmentation.photometric, (*key, "photometric"))
    whole_N = areas_N * (math.prod(after_hw) / math.prod(before_hw))
    return _without(sample, _areas(sample) < (augmentation.min_box_kept - 1e-4) * whole_N)


def mosaic(
    samples: Sequence[Sample], augmentation: Augmentation, canvas_hw: tuple[int, int], key: tuple[Key, ...]
) -> Sample:
    """Four images that fill the canvas; id, group and source size are those of the first.

    Each is shown around one of its boxes, at the scale that it would have by itself, or larger where it would not fill
    its quarter.
    """
    draws = random_stream(*key, "centre").random_sample(2)
    (height, width), (low, high) = canvas_hw, CENTRE
    row, column = (
        round(side * (low + (high - low) * draw)) for side, draw in zip(canvas_hw, draws, strict=True)
    )
    corners = [
        (0, 0, row, column),
        (0, column, row, width),
        (row, 0, height, column),
        (row, column, height, width),
    ]
    first = samples[0]
    whole = {name: x.new_zeros(len(x), *canvas_hw) for name, x in first.modalities.items()}
    boxes, labels = [], []
    for number, (sample, (top, left, bottom, right)) in enumerate(zip(samples, corners, strict=True)):
        room = Room((bottom - top, right - left), canvas_hw, is_filled=True)
        tile = placed(sample, augmentation, room, (*key, number, sample.image_id))
        for name, x_CHW in whole.items():
            x_CHW[:, top:bottom, left:right] = tile.modalities[name]
        boxes.append(tile.boxes_xyxy + torch.tensor([left, top, left, top]))
        labels.append(tile.labels)
    return replace(
        first, modalities=whole, boxes_xyxy=torch.cat(boxes), labels=torch.cat(labels), valid_hw=canvas_hw
    )


def partner_positions(
    image_id: str, *, probability: float, num_samples: int, seed: int, epoch: int
) -> tuple[int, ...]:
    """Which of the `num_samples` training images join this one in a mosaic: three, or none.

    Every image may come, the image itself as well, and more than once.
    """
    if probability == 0:
        return ()
    stream = random_stream(seed, epoch, image_id, "mosaic")
    if stream.random_sample() >= probability:
        return ()
    return tuple(int(draw * num_samples) for draw in stream.random_sample(NUM_PARTNERS))


def misaligned(sample: Sample, most_px: int, key: tuple[Key, ...]) -> Sample:
    """Every modality but rgb (or, without it, the first) shifted by up to `most_px` pixels; boxes stay."""
    if most_px == 0:
        return sample
    reference = "rgb" if "rgb" in sample.modalities else next(iter(sample.modalities))
    moved = dict(sample.modalities)
    for name in moved.keys() - {reference}:
        draws = random_stream(*key, "misalignment", name).random_sample(2)
        down, right = (int(draw * (2 * most_px + 1)) - most_px for draw in draws)
        # What enters: neither an edge that the sensor would not see, nor streaks of events. A sample is enough.
        fill_C = moved[name][:, ::8, ::8].flatten(1).median(dim=1).values
        moved[name] = shifted(moved[name], down=down, right=right, fill_C=fill_C)
    return replace(sample, modalities={name: moved[name] for name in sample.modalities})


def random_crop(sample: Sample, min_fraction: float, kept_N: Tensor, key: tuple[Key, ...]) -> Sample:
    """A part of an unpadded sample that holds the boxes of the rows `kept_N` whole.

    Args:
        min_fraction: height and width are at least this fraction of the sample's.
    """
    sides, places = random_stream(*key, "crop", "part").random_sample((2, 2))
    hull = _hull(sample, kept_N)
    size_hw = []
    for dim, length in enumerate(sample.canvas_hw):
        fraction = min_fraction + (1 - min_fraction) * sides[dim]
        whole = math.ceil(hull[dim + 2]) - math.floor(hull[dim]) if hull else 1
        size_hw.append(min(length, max(math.ceil(fraction * length), whole)))
    down, right = places
    return _cut_to(sample, (size_hw[0], size_hw[1]), kept_N, down=down, right=right)


def _rows_to_keep(sample: Sample, keep: str, key: tuple[Key, ...]) -> Tensor:
    """Rows of the boxes that cuts respect; none where there are no boxes."""
    num_boxes = len(sample.labels)
    if keep == "all" or num_boxes == 0:
        return torch.arange(num_boxes)
    return torch.tensor([int(random_stream(*key, "crop", "box").random_sample() * num_boxes)])


def _hull(sample: Sample, rows_N: Tensor | None) -> tuple[float, float, float, float] | None:
    """(top, left, bottom, right) around the boxes of some rows."""
    if rows_N is None or len(rows_N) == 0:
        return None
    boxes_xyxy = sample.boxes_xyxy[rows_N]
    left, top = boxes_xyxy[:, :2].amin(dim=0).tolist()
    right, bottom = boxes_xyxy[:, 2:].amax(dim=0).tolist()
    return top, left, bottom, right


def _cut_to(
    sample: Sample, room_hw: tuple[int, int], kept_N: Tensor | None, *, down: float, right: float
) -> Sample:
    """The part of an unpadded sample that fits the room, at a place given by two numbers in 0..1.

    Of all places, or of those that show as much as can be of the boxes of the rows `kept_N`.
    """
    hull = _hull(sample, kept_N)
    (height, width), draws = sample.canvas_hw, (down, right)
    size_hw = min(height, room_hw[0]), min(width, room_hw[1])
    top, left = (
        _start(length, part, draws[dim], (hull[dim], hull[dim + 2]) if hull else None)
        for dim, (length, part) in enumerate(zip((height, width), size_hw, strict=True))
    )
    return cut(sample, top=top, left=left, size_hw=size_hw)


def _start(length: int, part: int, draw: float, around: tuple[float, float] | None) -> int:
    """Where a part of a line begins.

    >>> [_start(100, 40, draw, None) for draw in (0.0, 0.999)]
    [0, 60]
    >>> [_start(100, 40, draw, (50.0, 70.0)) for draw in (0.0, 0.999)]
    [30, 50]
    """
    low, high = 0, length - part
    if around is not None:
        first, last = sorted((math.ceil(around[1]) - part, math.floor(around[0])))
        low, high = max(low, min(first, high)), min(high, max(last, low))
    return low + int(draw * (high - low + 1))


def _size(sample: Sample, room: Room, factor: float) -> tuple[int, int]:
    height, width = letterboxed_hw(sample.canvas_hw, room.canvas_hw, factor)
    if not room.is_filled:
        return height, width
    lacking = max(1.0, room.hw[0] / height, room.hw[1] / width)
    return max(room.hw[0], round(height * lacking)), max(room.hw[1], round(width * lacking))


def _areas(sample: Sample) -> Tensor:
    return (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).prod(dim=1)


def _without(sample: Sample, is_out_N: Tensor) -> Sample:
    return sample.with_targets(sample.boxes_xyxy[~is_out_N], sample.labels[~is_out_N])
