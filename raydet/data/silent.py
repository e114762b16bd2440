"""An embedded set of event windows whose objects stop, and then fire no events: only a memory still knows them.

128 x 128 pixels, sequences of 32 windows of 50 ms, one frame per window: a stacked histogram of 10 bins and two
polarities, see `raydet.ops.event_histogram`. One to three squares (side 10 to 14) move on integer paths, each within a
quarter of the image, and fire where their edges move: `bright` ones brighter in front and darker behind, `dark` ones
the other way round. There is no noise.

Three in four stop once, for 2, 4, 8, 16 or 24 windows. A square that stands fires nothing and keeps its label. Then it
moves on, or it leaves: it runs out of the image within one window, at whose end it has no label. So

- without memory, empty windows look alike, whatever stands in them;
- stops longer than a clip are lost by a memory that ends with the clip;
- what left is a mistake of a memory that never forgets, and so is the last sequence after a new one began.

AP50 on the windows without any event, a quarter of all, when what was seen is answered exactly:

    the same 98 boxes for all of them               0.000
    a memory of the clip, 5 windows                 0.16
    a memory that keeps what has left               0.73
    a memory of the sequence                        1

`silent_ages` tells for every box in how many windows its object has fired nothing. No loader reads it.

The bytes are the same on every machine: all arithmetic is on integers, and all draws are keyed bits, as in
`raydet.data.synthetic`.

Legend: N events, H W height and width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from raydet.data.randomness import Draws
from raydet.data.sources.base import Targets
from raydet.data.sources.boxes import box_target
from raydet.ops.event_histogram import stacked_histogram
from raydet.structures import Sample

SIDE = 128
SIZE_HW = (SIDE, SIDE)
CELL = SIDE // 2
CELLS = ((0, 0), (0, CELL), (CELL, 0), (CELL, CELL))
"""Top left corners of the quarters."""
NUM_WINDOWS = 32
WINDOW_US = 50_000
CLASSES = ("bright", "dark")
SIDES = (10, 14)
STEPS = (2, 4)
"""Pixels per window."""
STOPS = (2, 4, 8, 16, 24)
STOP_PERCENT = 75
LEAVE_PERCENT = 50
FIRST_STOP = 2
"""Windows of motion before a stop, at least."""

Position = tuple[int, int]
"""Top and left."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Track:
    """Squares that move together: where the first one's corner is, and when."""

    label: int
    side: int
    polarity: int
    """Of the events in front; those behind have the other one."""
    offsets: tuple[Position, ...]
    """Of the squares from the corner."""
    windows: tuple[tuple[Position, ...], ...]
    """Of each window: the positions of the corner from its start to its end, pixel by pixel; one: it stands. () once it
    has left."""


class SilentSet:
    """A data set that is rendered window by window on reading."""

    def __init__(
        self,
        *,
        num_sequences: int,
        seed: int,
        missing: Collection[str] = (),
        num_windows: int = NUM_WINDOWS,
    ) -> None:
        self.classes: tuple[str, ...] = CLASSES
        self.num_windows = num_windows
        self._seed = seed
        self.modalities = tuple(name for name in ("event",) if name not in missing)
        self.group_ids = [f"sequence_{i:04d}" for i in range(num_sequences) for _ in range(self.num_windows)]
        self.image_ids = [f"{group}_{i % self.num_windows:04d}" for i, group in enumerate(self.group_ids)]

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, index: int) -> Sample:
        target, _ = self.targets(index)
        sequence, window = divmod(index, self.num_windows)
        counts_CHW = window_of(self.tracks(sequence), window)
        return Sample(
            image_id=self.image_ids[index],
            group_id=self.group_ids[index],
            modalities={name: torch.from_numpy(counts_CHW) for name in self.modalities},
            target=target,
            source_hw=SIZE_HW,
            valid_hw=SIZE_HW,
        )

    def targets(self, index: int) -> Targets:
        sequence, window = divmod(index, self.num_windows)
        there = [track for track in self.tracks(sequence) if _is_there(track, window)]
        boxes = [box for track in there for box in boxes_at_end(track, window)]
        return box_target(boxes, [track.label for track in there for _ in track.offsets]), SIZE_HW

    def silent_ages(self, index: int) -> tuple[int, ...]:
        """Of every box: windows since its object last fired; 0: in this one."""
        sequence, window = divmod(index, self.num_windows)
        ages = []
        for track in self.tracks(sequence):
            if _is_there(track, window):
                last = max(w for w in range(window + 1) if len(track.windows[w]) > 1)
                ages += [window - last] * len(track.offsets)
        return tuple(ages)

    def is_empty(self, index: int) -> bool:
        """Whether a window has no events."""
        sequence, window = divmod(index, self.num_windows)
        return all(len(track.windows[window]) <= 1 for track in self.tracks(sequence))

    def tracks(self, sequence: int) -> list[Track]:
        """The squares of a sequence; each moves in its first windows."""
        draws = Draws(self._seed, sequence, "squares")
        cells = list(CELLS)
        tracks = []
        for _ in range(draws.integer(1, 3)):
            cell = cells.pop(draws.integer(0, len(cells) - 1))
            label = draws.integer(0, 1)
            side = draws.integer(*SIDES)
            stop: range | None = None
            if draws.chance(STOP_PERCENT):
                length = STOPS[draws.integer(0, len(STOPS) - 1)]
                first = draws.integer(FIRST_STOP, NUM_WINDOWS - 1 - length)
                stop = range(first, first + length)
            windows = walk(draws, cell, side, NUM_WINDOWS, stop=stop, leaves=draws.chance(LEAVE_PERCENT))
            tracks.append(Track(label, side, polarity=1 - label, offsets=((0, 0),), windows=tuple(windows)))
        return tracks


def walk(
    draws: Draws,
    cell: Position,
    side: int,
    num_windows: int,
    *,
    stop: range | None = None,
    leaves: bool = False,
) -> Iterator[tuple[Position, ...]]:
    """The positions of every window for something of this side that turns at the edges of a cell.

    Args:
        stop: windows in which it stands.
        leaves: whether it leaves after them.
    """
    lowest, highest = [edge + 1 for edge in cell], [edge + CELL - side - 1 for edge in cell]
    position = [draws.integer(low, high) for low, high in zip(lowest, highest, strict=True)]
    direction = [draws.sign(), draws.integer(-1, 1)]
    if draws.chance(50):
        direction.reverse()
    steps = draws.integer(*STEPS)
    for window in range(num_windows):
        if stop is not None and window in stop:
            yield (_at(position),)
            continue
        if stop is not None and leaves and window >= stop.stop:
            top, left = position
            ends = range(left, -side - 1, -1) if cell[1] == 0 else range(left, SIDE + 1)
            yield tuple((top, each) for each in ends) if window == stop.stop else ()
            continue
        visited = [_at(position)]
        for _ in range(steps):
            for axis in range(2):
                if not lowest[axis] <= position[axis] + direction[axis] <= highest[axis]:
                    direction[axis] = -direction[axis]
                position[axis] += direction[axis]
            visited.append(_at(position))
        yield tuple(visited)


def window_of(tracks: Sequence[Track], window: int) -> NDArray[np.uint8]:
    """The stacked histogram of a window: uint8 [20, H, W]."""
    parts = [
        _edge_events(track, step, steps=len(track.windows[window]) - 1, before=before, after=after)
        for track in tracks
        for step, (before, after) in enumerate(pairwise(track.windows[window]))
    ]
    rows = np.concatenate([np.empty((0, 4), np.int64), *parts])
    t_us, x, y, p = rows[np.argsort(rows[:, 0], kind="stable")].T
    return stacked_histogram(
        t_us, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), size_hw=SIZE_HW
    )


def boxes_at_end(track: Track, window: int) -> list[tuple[float, float, float, float]]:
    """The boxes of a track that is there at the end of a window."""
    top, left = track.windows[window][-1]
    return [
        (left + right, top + down, left + right + track.side, top + down + track.side)
        for down, right in track.offsets
    ]


def _edge_events(track: Track, step: int, *, steps: int, before: Position, after: Position) -> Ints:
    """t, x, y, p of the pixels that squares reach or leave in a step of at most one pixel each way: [N, 4]."""
    side = track.side
    corner = np.minimum(before, after)
    masks = np.zeros((2, side + 1, side + 1), bool)
    for mask, (top, left) in zip(masks, (before - corner, after - corner), strict=True):
        mask[top : top + side, left : left + side] = True
    t_us = (2 * step + 1) * WINDOW_US // (2 * steps)
    sides = []
    for inside, outside, p in (
        (masks[1], masks[0], track.polarity),
        (masks[0], masks[1], 1 - track.polarity),
    ):
        y, x = np.nonzero(inside & ~outside)
        sides.append(
            np.stack([np.full_like(x, t_us), x + corner[1], y + corner[0], np.full_like(x, p)], axis=1)
        )
    shifts = np.array([(0, right, down, 0) for down, right in track.offsets])
    events: Ints = (np.concatenate(sides) + shifts[:, None]).reshape(-1, 4)
    is_seen = (events[:, 1] >= 0) & (events[:, 1] < SIDE)
    return events[is_seen]


def _is_there(track: Track, window: int) -> bool:
    """Whether it has a label at the end of a window: neither has it left, nor does it leave."""
    positions = track.windows[window]
    return bool(positions) and -track.side < positions[-1][1] < SIDE


def _at(position: Sequence[int]) -> Position:
    return position[0], position[1]
