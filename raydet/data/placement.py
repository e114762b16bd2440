"""Augment one image: sensor shift, crop, resize, flip, rotation, photometric changes; or a mosaic of four such images.

The image is first shifted and cropped by whole source pixels, then resampled once, to its final size. A rotation
resamples it again, and so does the published form of `native_crop`.

Legend: C channels, H W height and width, N boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raydet.config import Augmentation, NativeCrop
from raydet.data.geometry import (
    cut,
    flip_horizontally,
    joined_target,
    letterboxed_hw,
    object_boxes,
    resize,
    rotate,
    shifted,
    with_rows,
)
from raydet.data.photometric import with_other_values
from raydet.data.randomness import Key, random_stream
from raydet.structures import Sample

NUM_PARTNERS = 3
CENTRE = (0.3, 0.7)
"""Range of the point where the four tiles of a mosaic meet, as a fraction of the canvas' height and width."""


@dataclass(frozen=True, slots=True)
class Room:
    """The area that an image may cover."""

    hw: tuple[int, int]
    """Larger images are cropped to this size."""
    canvas_hw: tuple[int, int]
    """Sets the scale: at factor 1 the image just fits the canvas."""
    is_filled: bool = False
    """Enlarge an image that would not cover the whole area."""


def placed(sample: Sample, augmentation: Augmentation, room: Room, key: tuple[Key, ...]) -> Sample:
    """The augmented image, no larger than its room, without padding; boxes that were cropped too far are dropped.

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
    before_hw = sample.canvas_hw
    if augmentation.native_crop is not None:
        low, high = augmentation.native_crop.scale
        after_hw = _scaled(before_hw, low + (high - low) * scale)
        sample = native_window(
            sample, augmentation.native_crop, room.canvas_hw, after_hw, down=down, right=right
        )
        if augmentation.native_crop.window == "scaled":
            after_hw = before_hw  # the factor has cancelled
    else:
        low, high = augmentation.scale_jitter
        after_hw = _size(sample, room, low + (high - low) * scale)
        sample = _cut_to(resize(sample, after_hw), room.hw, kept_N, down=down, right=right)
    if flip < augmentation.flip_probability:
        sample = flip_horizontally(sample)
    if augmentation.rotation_degrees:
        share = 2 * random_stream(*key, "rotation").random_sample() - 1
        sample = rotate(sample, share * augmentation.rotation_degrees)
    sample = with_other_values(sample, augmentation.photometric, (*key, "photometric"))
    whole_N = areas_N * (math.prod(after_hw) / math.prod(before_hw))
    is_cropped_N = _areas(sample) < (augmentation.min_box_kept - 1e-4) * whole_N
    return with_rows(sample, ~is_cropped_N)


def native_window(
    sample: Sample,
    config: NativeCrop,
    canvas_hw: tuple[int, int],
    after_hw: tuple[int, int],
    *,
    down: float,
    right: float,
) -> Sample:
    """A window of an unpadded sample, no larger than the canvas.

    Args:
        after_hw: size to which the sample is resized before.
        down, right: where the window lies, 0..1.
    """
    before_hw, resized = sample.canvas_hw, resize(sample, after_hw)
    if config.window == "fixed":
        return _cut_to(resized, canvas_hw, None, down=down, right=right)
    factors = [after / before for after, before in zip(after_hw, before_hw, strict=True)]
    window_h, window_w = (max(1, int(side * factor)) for side, factor in zip(canvas_hw, factors, strict=True))
    window = _cut_to(resized, (window_h, window_w), None, down=down, right=right)
    height, width = window.canvas_hw
    return resize(window, (round(height * canvas_hw[0] / window_h), round(width * canvas_hw[1] / window_w)))


def mosaic(
    samples: Sequence[Sample], augmentation: Augmentation, canvas_hw: tuple[int, int], key: tuple[Key, ...]
) -> Sample:
    """A mosaic of four images that fill the canvas; id, group and source size are those of the first.

    Each tile shows the surroundings of one of the image's boxes, at the scale that the image would have by itself, or
    larger if it would not fill the tile.
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
    tiles = []
    for number, (sample, (top, left, bottom, right)) in enumerate(zip(samples, corners, strict=True)):
        room = Room((bottom - top, right - left), canvas_hw, is_filled=True)
        tile = placed(sample, augmentation, room, (*key, number, sample.image_id))
        for name, x_CHW in whole.items():
            x_CHW[:, top:bottom, left:right] = tile.modalities[name]
        tiles.append(tile)
    target = joined_target(tiles, [corner[:2] for corner in corners], canvas_hw)
    return replace(first, modalities=whole, target=target, valid_hw=canvas_hw)


def partner_positions(
    image_id: str, *, probability: float, num_samples: int, seed: int, epoch: int
) -> tuple[int, ...]:
    """The positions in 0..num_samples - 1 of the images that join this one in a mosaic: three, or none.

    They are drawn with replacement from all images, including this one.
    """
    if probability == 0:
        return ()
    stream = random_stream(seed, epoch, image_id, "mosaic")
    if stream.random_sample() >= probability:
        return ()
    return tuple(int(draw * num_samples) for draw in stream.random_sample(NUM_PARTNERS))


def misaligned(sample: Sample, max_px: int, key: tuple[Key, ...]) -> Sample:
    """Shift every modality except rgb (without rgb, except the first) by up to `max_px` pixels; the target stays."""
    if max_px == 0:
        return sample
    reference = "rgb" if "rgb" in sample.modalities else next(iter(sample.modalities))
    moved = dict(sample.modalities)
    for name in moved.keys() - {reference}:
        draws = random_stream(*key, "misalignment", name).random_sample(2)
        down, right = (int(draw * (2 * max_px + 1)) - max_px for draw in draws)
        # The median adds neither edges that the sensor would not see, nor streaks of events. A subsample is enough.
        fill_C = moved[name][:, ::8, ::8].flatten(1).median(dim=1).values
        moved[name] = shifted(moved[name], down=down, right=right, fill_C=fill_C)
    return replace(sample, modalities={name: moved[name] for name in sample.modalities})


def random_crop(sample: Sample, min_fraction: float, kept_N: Tensor, key: tuple[Key, ...]) -> Sample:
    """A random crop of an unpadded sample that contains the boxes of the rows `kept_N` entirely.

    Args:
        min_fraction: smallest height and width, as a fraction of the sample's.
    """
    sides, offsets = random_stream(*key, "crop", "part").random_sample((2, 2))
    hull = _hull(sample, kept_N)
    size_hw = []
    for dim, length in enumerate(sample.canvas_hw):
        fraction = min_fraction + (1 - min_fraction) * sides[dim]
        whole = math.ceil(hull[dim + 2]) - math.floor(hull[dim]) if hull else 1
        size_hw.append(min(length, max(math.ceil(fraction * length), whole)))
    down, right = offsets
    return _cut_to(sample, (size_hw[0], size_hw[1]), kept_N, down=down, right=right)


def _rows_to_keep(sample: Sample, keep: str, key: tuple[Key, ...]) -> Tensor:
    """Rows of the boxes that crops must contain."""
    num_boxes = len(object_boxes(sample))
    if keep == "all" or num_boxes == 0:
        return torch.arange(num_boxes)
    return torch.tensor([int(random_stream(*key, "crop", "box").random_sample() * num_boxes)])


def _hull(sample: Sample, rows_N: Tensor | None) -> tuple[float, float, float, float] | None:
    """(top, left, bottom, right) around the boxes of some rows."""
    if rows_N is None or len(rows_N) == 0:
        return None
    boxes_xyxy = object_boxes(sample)[rows_N]
    left, top = boxes_xyxy[:, :2].amin(dim=0).tolist()
    right, bottom = boxes_xyxy[:, 2:].amax(dim=0).tolist()
    return top, left, bottom, right


def _cut_to(
    sample: Sample, room_hw: tuple[int, int], kept_N: Tensor | None, *, down: float, right: float
) -> Sample:
    """Crop an unpadded sample to the room, at an offset given by two numbers in 0..1.

    The offset is among all possible ones, or among those that show as much as possible of the boxes of rows `kept_N`.
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
    """Start of an interval of length `part` within 0..length.

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
    enlargement = max(1.0, room.hw[0] / height, room.hw[1] / width)
    return max(room.hw[0], round(height * enlargement)), max(room.hw[1], round(width * enlargement))


def _scaled(size_hw: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, int(size_hw[0] * factor)), max(1, int(size_hw[1] * factor))


def _areas(sample: Sample) -> Tensor:
    boxes_xyxy = object_boxes(sample)
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1)
