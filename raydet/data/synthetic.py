"""An embedded RGB + thermal + event set in which every modality sees objects that another misses.

A sequence is a street corner seen once a second: geometric objects on a textured background, one class per shape. The
event camera collects the few milliseconds before the image.

- Every third sequence is at night: the RGB image is nearly black, objects are visible in thermal (warm ones) and in the
  events (moving ones).
- By day an object may have the background's colour (camouflage), the background's temperature (cold), or both.
- Events come from objects that move at that moment; objects that are visible in nothing else always move.

By default each modality alone shows more than a tenth of the objects (see the tests).

The bytes are the same on every machine: all arithmetic is on integers, and the draws are PCG64's raw stream, which
numpy has frozen (the distributions on top of it may change).

Legend: H W height and width, S side of an object.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.randomness import Draws
from raydet.data.sources.boxes import box_target
from raydet.structures import Boxes, Sample

SHAPES = ("circle", "square", "triangle")
MODALITIES = ("rgb", "thermal", "event")
NIGHT_EVERY = 3
UNIT_PX = 96
"""Lengths below are in pixels of an image whose shorter side is this long; larger images have larger objects."""
SIDE_RANGE = (16, 38)
GAP = 6
"""Minimum distance between objects of one image: none hides another or fires events into its box."""

Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Object:
    """An object's properties that are constant over a sequence."""

    label: int
    side: int
    start_yx: tuple[int, int]
    speed_yx: tuple[int, int]
    """Pixels from one image to the next, signed."""
    shift_yx: tuple[int, int]
    """Pixels within the event window, without sign."""
    colour: tuple[int, int, int]
    heat: int
    visible_in: frozenset[str]
    """Subset of rgb and thermal."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """An object in one image."""

    object: _Object
    top: int
    left: int
    shift_yx: tuple[int, int]
    """Signed motion within the event window; (0, 0): the object is at rest."""

    @property
    def visible_in(self) -> frozenset[str]:
        return self.object.visible_in | {"event"} if self.shift_yx != (0, 0) else self.object.visible_in

    @property
    def box(self) -> tuple[float, float, float, float]:
        side = self.object.side
        return self.left, self.top, self.left + side, self.top + side

    def is_clear_of(self, other: _Placed, gap: int) -> bool:
        (x1, y1, x2, y2), (u1, v1, u2, v2) = self.box, other.box
        return x2 + gap <= u1 or u2 + gap <= x1 or y2 + gap <= v1 or v2 + gap <= y1


class SyntheticSet:
    """A data set that is rendered image by image on reading.

    Args:
        classes: names; class k has the shape k modulo 3, cut by k // 3 horizontal slits.
        missing: modalities to leave out.
    """

    def __init__(
        self,
        *,
        num_sequences: int,
        frames_per_sequence: int,
        size_hw: tuple[int, int],
        classes: Sequence[str],
        seed: int,
        missing: Collection[str] = (),
    ) -> None:
        self.classes = tuple(classes)
        self.modalities = tuple(name for name in MODALITIES if name not in missing)
        self.size_hw = size_hw
        self.seed = seed
        self.frames_per_sequence = frames_per_sequence
        self.group_ids = [
            f"sequence_{i:04d}" for i in range(num_sequences) for _ in range(frames_per_sequence)
        ]
        self.image_ids = [f"{group}_{i % frames_per_sequence:04d}" for i, group in enumerate(self.group_ids)]

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, index: int) -> Sample:
        target, size_hw = self.targets(index)
        rendered = self._render(index)
        return Sample(
            image_id=self.image_ids[index],
            group_id=self.group_ids[index],
            modalities={name: rendered[name] for name in self.modalities},
            target=target,
            source_hw=size_hw,
            valid_hw=size_hw,
        )

    def targets(self, index: int) -> tuple[Boxes, tuple[int, int]]:
        placed = self._placed(index)
        return box_target([p.box for p in placed], [p.object.label for p in placed]), self.size_hw

    def visible_in(self, index: int) -> tuple[frozenset[str], ...]:
        """For each object of an image, the modalities in which it is visible: at least one."""
        return tuple(placed.visible_in for placed in self._placed(index))

    def is_night(self, index: int) -> bool:
        """Whether the image's RGB is nearly black."""
        return index // self.frames_per_sequence % NIGHT_EVERY == 1

    def _placed(self, index: int) -> list[_Placed]:
        sequence, frame = divmod(index, self.frames_per_sequence)
        draws = Draws(self.seed, sequence, frame, "motion")
        gap = GAP * min(self.size_hw) // UNIT_PX
        placed: list[_Placed] = []
        for candidate in self._objects(sequence):
            found = _place(candidate, frame, self.size_hw, at_rest=draws.chance(65))
            if all(found.is_clear_of(other, gap) for other in placed):
                placed.append(found)
        return placed

    def _objects(self, sequence: int) -> list[_Object]:
        draws = Draws(self.seed, sequence, "objects")
        is_night = sequence % NIGHT_EVERY == 1
        return [
            _draw_object(draws, (sequence + i) % len(self.classes), self.size_hw, is_night=is_night)
            for i in range(draws.integer(2, 4))
        ]

    def _render(self, index: int) -> dict[str, Tensor]:
        sequence, frame = divmod(index, self.frames_per_sequence)
        rgb_3HW, thermal_HW = _background(Draws(self.seed, sequence, "ground"), self.size_hw)
        event_HW = np.zeros(self.size_hw, np.int32)
        for number, placed in enumerate(self._placed(index)):
            _paint(placed, rgb_3HW, thermal_HW)
            _fire_events(placed, event_HW, Draws(self.seed, sequence, frame, "events", number))
        if self.is_night(index):
            rgb_3HW //= 24
        draws = Draws(self.seed, sequence, frame, "noise")
        event_HW += np.where(draws.bytes(self.size_hw) < 3, 70, 0)  # one pixel in a hundred fires by itself
        return {
            "rgb": as_image(rgb_3HW + sensor_noise(draws, rgb_3HW.shape)),
            "thermal": as_image((thermal_HW + sensor_noise(draws, self.size_hw))[None]),
            "event": as_image(event_HW[None]),
        }


def _draw_object(draws: Draws, label: int, size_hw: tuple[int, int], *, is_night: bool) -> _Object:
    height, width = size_hw
    unit = min(size_hw)
    side = draws.integer(SIDE_RANGE[0] * unit // UNIT_PX, SIDE_RANGE[1] * unit // UNIT_PX)
    sign = draws.sign()
    return _Object(
        label=label,
        side=side,
        start_yx=(draws.integer(0, height - side), draws.integer(0, width - side)),
        speed_yx=(
            draws.sign() * draws.integer(4 * unit // UNIT_PX, 11 * unit // UNIT_PX),
            draws.sign() * draws.integer(4 * unit // UNIT_PX, 15 * unit // UNIT_PX),
        ),
        shift_yx=(
            max(1, draws.integer(2 * unit // UNIT_PX, 3 * unit // UNIT_PX)),
            max(1, draws.integer(2 * unit // UNIT_PX, 3 * unit // UNIT_PX)),
        ),
        colour=(sign * draws.integer(55, 105), sign * draws.integer(55, 105), sign * draws.integer(55, 105)),
        heat=draws.integer(75, 125),
        visible_in=_draw_visibility(draws.integer(0, 99), is_night=is_night),
    )


def _draw_visibility(percentile: int, *, is_night: bool) -> frozenset[str]:
    if is_night:
        return frozenset({"thermal"} if percentile < 70 else ())
    if percentile < 45:
        return frozenset({"rgb"})
    if percentile < 60:
        return frozenset({"thermal"})
    return frozenset({"rgb", "thermal"} if percentile < 80 else ())


def _place(candidate: _Object, frame: int, size_hw: tuple[int, int], *, at_rest: bool) -> _Placed:
    (top, down), (left, right) = (
        _bounce(start + speed * frame, speed, length - candidate.side)
        for start, speed, length in zip(candidate.start_yx, candidate.speed_yx, size_hw, strict=True)
    )
    moved_yx = (down * candidate.shift_yx[0], right * candidate.shift_yx[1])
    shift_yx = (0, 0) if at_rest and candidate.visible_in else moved_yx
    return _Placed(object=candidate, top=top, left=left, shift_yx=shift_yx)


def _bounce(position: int, speed: int, span: int) -> tuple[int, int]:
    """The position of an object that bounces within 0..span, and the sign of its speed there.

    >>> [_bounce(2 * t, 2, 5) for t in range(5)]
    [(0, 1), (2, 1), (4, 1), (4, -1), (2, -1)]
    """
    phase = position % (2 * span)
    sign = 1 if speed > 0 else -1
    return (phase, sign) if phase <= span else (2 * span - phase, -sign)


def _background(draws: Draws, size_hw: tuple[int, int]) -> tuple[Ints, Ints]:
    """Daylight RGB [3, H, W] and thermal [H, W], without objects and noise."""
    unit = min(size_hw)
    coarse_HW = smooth_texture(draws, size_hw, unit // 3)
    fine_HW = smooth_texture(draws, size_hw, max(2, unit // 16))
    tint_3 = np.array([draws.integer(95, 150) for _ in range(3)], np.int32)
    rgb_3HW = tint_3[:, None, None] + (coarse_HW * 40 + fine_HW * 24) // 256 - 32
    thermal_HW = draws.integer(60, 100) + smooth_texture(draws, size_hw, unit // 3) * 28 // 256 - 14
    return rgb_3HW, thermal_HW


def smooth_texture(draws: Draws, size_hw: tuple[int, int], cell: int) -> Ints:
    """Smooth noise in 0..255: random values on a grid, linearly interpolated."""
    height, width = size_hw
    grid = draws.bytes((height // cell + 2, width // cell + 2))
    y, x = np.arange(height, dtype=np.int32), np.arange(width, dtype=np.int32)
    row, down_H1 = y // cell, (y % cell)[:, None]
    column, right_W = x // cell, x % cell
    rows = grid[row] * (cell - down_H1) + grid[row + 1] * down_H1
    smooth = rows[:, column] * (cell - right_W) + rows[:, column + 1] * right_W
    return (smooth // cell**2).astype(np.int32)


def _shape(label: int, side: int) -> Mask:
    """The silhouette [S, S] of a class; it touches all four sides."""
    row_S1, column_S = np.arange(side)[:, None], np.arange(side)
    # Twice the distance from the centre, so that everything stays an integer.
    down_S1, right_S = np.abs(2 * row_S1 + 1 - side), np.abs(2 * column_S + 1 - side)
    match SHAPES[label % len(SHAPES)]:
        case "circle":
            mask = down_S1**2 + right_S**2 <= side**2
        case "square":
            mask = np.ones((side, side), bool)
        case _:
            mask = right_S <= row_S1 + 1
    num_slits = label // len(SHAPES)
    solid: Mask = mask & (row_S1 * (2 * num_slits + 1) // side % 2 == 0)
    return solid


def _paint(placed: _Placed, rgb_3HW: Ints, thermal_HW: Ints) -> None:
    """Add an object's colour and heat; an invisible one differs from the background by a trace."""
    painted = placed.object
    mask_SS = _shape(painted.label, painted.side)
    rows = slice(placed.top, placed.top + painted.side)
    columns = slice(placed.left, placed.left + painted.side)
    colour_3 = np.array(painted.colour if "rgb" in painted.visible_in else (3, 3, 3), np.int32)
    rgb_3HW[:, rows, columns] += colour_3[:, None, None] * mask_SS
    thermal_HW[rows, columns] += (painted.heat if "thermal" in painted.visible_in else 2) * mask_SS


def _fire_events(placed: _Placed, event_HW: Ints, draws: Draws) -> None:
    """Add the events of a moving object: strong where it arrives, weak where it leaves, scattered within."""
    if placed.shift_yx == (0, 0):
        return
    mask_SS = _shape(placed.object.label, placed.object.side)
    down, right = placed.shift_yx
    now_HW = _stamped(mask_SS, placed.top, placed.left, event_HW.shape)
    before_HW = _stamped(mask_SS, placed.top - down, placed.left - right, event_HW.shape)
    fires_HW = draws.bytes(event_HW.shape) < 100
    event_HW += (
        220 * (now_HW & ~before_HW) + 80 * (before_HW & ~now_HW) + 130 * (now_HW & before_HW & fires_HW)
    )


def _stamped(mask_SS: Mask, top: int, left: int, size_hw: tuple[int, ...]) -> Mask:
    """The mask at a position in an empty image, clipped to it."""
    stamped_HW = np.zeros(size_hw, bool)
    skip_y, skip_x = max(0, -top), max(0, -left)
    target_HW = stamped_HW[top + skip_y : top + len(mask_SS), left + skip_x : left + len(mask_SS)]
    target_HW[:] = mask_SS[skip_y : skip_y + target_HW.shape[0], skip_x : skip_x + target_HW.shape[1]]
    return stamped_HW


def sensor_noise(draws: Draws, shape: tuple[int, ...]) -> Ints:
    """Triangular noise in -7..7."""
    values = draws.bytes(shape)
    noise: Ints = (values & 7) + (values >> 5) - 7
    return noise


def as_image(values: Ints) -> Tensor:
    return torch.from_numpy(np.clip(values, 0, 255).astype(np.uint8))
