"""A recording of an event camera, read block by block, with times that never decrease.

A format contributes a `BlockReader`. Everything else is the same for all of them: where every block begins in time, the
check of coordinates, and the events of an interval, for which only the blocks that meet it are kept.

**Time.** Cameras and cut files deliver some events late. Such an event gets the time of the latest event before it, as
RVT does (Gehrig and Scaramuzza 2023, arXiv 2212.05598); `num_late` counts them. A recording in which most events are
late does not run forwards, and is refused.

Legend: N events.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.files.text import open_regular

BLOCK = 2**18
"""Words, or events, of a block: large enough for numpy, small enough to be read for one window."""
MAX_SIDE = 2**14
"""Pixels; the formats with the widest coordinates have 14 bits."""
CACHED_BLOCKS = 4
EARLIEST = int(np.iinfo(np.int64).min)

Ints = NDArray[np.int64]


class Events(NamedTuple):
    """Events in the order of the recording."""

    t_us: Ints
    """int64 [N], microseconds, never decreasing."""
    x: NDArray[np.uint16]
    """uint16 [N], pixels."""
    y: NDArray[np.uint16]
    """uint16 [N], pixels."""
    p: NDArray[np.uint8]
    """uint8 [N]: 1 where it became brighter, 0 where darker."""


State = tuple[int, ...]
"""What the decoder of a format remembers from one block to the next."""


class Block(NamedTuple):
    """Events of a block as they lie in the file."""

    events: Events
    """Times may decrease."""
    state: State
    """For the next block."""
    num_unplaced: int = 0
    """Events that had to be dropped, because no time or no row came before them."""


class BlockReader(Protocol):
    """One format's part of a recording."""

    @property
    def num_blocks(self) -> int:
        """The number of blocks; 0 for a recording without events."""

    @property
    def initial(self) -> State:
        """What the first block gets."""

    def read(self, block: int, state: State) -> Block:
        """One block, given the state that the block before it has left.

        Raises:
            DataError: the block is damaged.
        """


@dataclass
class EventRecording:
    """Events of one camera.

    `between` reads as far as it must and remembers where blocks begin, so that windows in the order of time read
    every block once. Numbers about the whole recording read it to its end. Errors are raised where they are met.
    """

    path: Path
    height: int
    width: int
    reader: BlockReader

    def __post_init__(self) -> None:
        # Of every block that was read: the state before it, the latest time before it, its first and its last time.
        self._states: list[State] = [self.reader.initial]
        self._before_us: list[int] = [EARLIEST]
        self._first_us: list[int] = []
        self._last_us: list[int] = []
        self._num_events = self._num_late = self._num_unplaced = 0
        self._cached: dict[int, Events] = {}

    @property
    def num_events(self) -> int:
        self._read_until(None)
        return self._num_events

    @property
    def num_late(self) -> int:
        """Events whose time was before that of an earlier one, and was moved to it."""
        self._read_until(None)
        return self._num_late

    @property
    def num_unplaced(self) -> int:
        """Events at the beginning of a cut stream whose time or row is not known; they are left out."""
        self._read_until(None)
        return self._num_unplaced

    @property
    def first_us(self) -> int:
        """Time of the first event."""
        self._read_until(EARLIEST + 1)
        return next(time for time in self._first_us if time > EARLIEST)

    @property
    def last_us(self) -> int:
        """Time of the last event."""
        self._read_until(None)
        return self._last_us[-1]

    def ended_before(self, time_us: int) -> bool:
        """Whether the last event is before a time."""
        self._read_until(time_us)
        return self._last_us[-1] < time_us

    def between(self, start_us: int, end_us: int) -> Events:
        """The events with `start_us` <= t < `end_us`."""
        self._read_until(end_us)
        blocks = range(bisect_left(self._last_us, start_us), bisect_left(self._first_us, end_us))
        return joined([_cut(self._block(block), start_us, end_us) for block in blocks])

    def blocks(self) -> Iterator[Events]:
        """All events, block by block."""
        for block in range(self.reader.num_blocks):
            self._read_until_block(block)
            yield self._block(block)
        self._read_until(None)

    @property
    def _num_blocks(self) -> int:
        """Number of blocks that were read."""
        return len(self._last_us)

    def _read_until(self, time_us: int | None) -> None:
        """Read on until the latest event is not before a time; None: to the end."""
        while self._num_blocks < self.reader.num_blocks and (
            time_us is None or not self._last_us or self._last_us[-1] < time_us
        ):
            self._read_until_block(self._num_blocks)
        if self._num_blocks == self.reader.num_blocks and not self._num_events:
            raise DataError(f"{self.path}: expected events, found none; record again, or leave the file out")

    def _read_until_block(self, block: int) -> None:
        while self._num_blocks <= block:
            number, latest = self._num_blocks, self._before_us[-1]
            found = self._decoded(number)
            events = _in_order(found.events, latest)
            times = events.t_us
            self._num_events += len(times)
            self._num_late += int((times != found.events.t_us).sum())
            self._num_unplaced += found.num_unplaced
            if 2 * self._num_late > self._num_events:
                raise DataError(
                    f"{self.path}: time runs backwards: {self._num_late} of {self._num_events} events come after a "
                    "later one; sort them by time, or cut the recording where its clock restarts"
                )
            self._first_us.append(int(times[0]) if len(times) else latest)
            self._last_us.append(int(times[-1]) if len(times) else latest)
            self._states.append(found.state)
            self._before_us.append(self._last_us[-1])
            self._remember(number, events)

    def _block(self, block: int) -> Events:
        if block not in self._cached:
            self._remember(block, _in_order(self._decoded(block).events, self._before_us[block]))
        return self._cached[block]

    def _remember(self, block: int, events: Events) -> None:
        while len(self._cached) >= CACHED_BLOCKS:  # the oldest one
            del self._cached[next(iter(self._cached))]
        self._cached[block] = events

    def _decoded(self, block: int) -> Block:
        found = self.reader.read(block, self._states[block])
        for name, values_N, size in (("x", found.events.x, self.width), ("y", found.events.y, self.height)):
            if len(values_N) and int(values_N.max()) >= size:
                raise DataError(
                    f"{self.path}, block {block}: expected {name} in 0..{size - 1} on a sensor of {self.height} x "
                    f"{self.width} (height x width), got {values_N.max()}; correct its size, or copy the file again"
                )
        return found


def joined(parts: list[Events]) -> Events:
    """Events one after another; none for no parts."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.empty(0, np.uint16)
        return Events(np.empty(0, np.int64), none, none, np.empty(0, np.uint8))
    return Events(
        np.concatenate([part.t_us for part in parts]),
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.p for part in parts]),
    )


def unwrapped(values_N: NDArray[Any], previous: int | None, period: int) -> Ints:
    """Values of a counter that restarts at 0 when it reaches `period`, as a count that does not.

    A step of more than half a period is taken for a restart, in either direction, because a late word may follow one.

    Args:
        previous: the count before, if there is one.

    >>> unwrapped(np.array([6, 7, 0, 7, 1]), 5, 8).tolist()
    [6, 7, 8, 7, 9]
    """
    values_N = values_N.astype(np.int64)
    if not len(values_N):
        return values_N
    start = int(values_N[0]) if previous is None else previous
    steps_N = np.diff(values_N, prepend=start % period)
    return start + np.cumsum((steps_N + period // 2) % period - period // 2)


def read_words(path: Path, dtype: str, start: int, count: int) -> NDArray[Any]:
    """`count` values from byte `start` on.

    Raises:
        DataError: the file has fewer.
    """
    try:
        with open_regular(path) as file:
            file.seek(start)
            content = file.read(count * np.dtype(dtype).itemsize)
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {error.strerror or error}; check the file") from error
    if len(content) != count * np.dtype(dtype).itemsize:
        raise DataError(f"{path}: has become shorter since it was opened; start again")
    return np.frombuffer(content, dtype)


def num_words(path: Path, dtype: str, start: int, what: str) -> int:
    """The number of values from byte `start` to the end of the file.

    Raises:
        DataError: the file ends within one.
    """
    size = np.dtype(dtype).itemsize
    count, rest = divmod(path.stat().st_size - start, size)
    if rest:
        raise DataError(
            f"{path}: expected {what} of {size} bytes, the last one has {rest}; the file is truncated, copy it again"
        )
    return count


def _in_order(events: Events, latest_us: int) -> Events:
    """The events with times that never decrease, nor lie before `latest_us`."""
    times_N = events.t_us
    if len(times_N) and (times_N[0] < latest_us or (times_N[1:] < times_N[:-1]).any()):
        times_N = np.maximum.accumulate(np.maximum(times_N, latest_us))
    return events._replace(t_us=times_N)


def _cut(events: Events, start_us: int, end_us: int) -> Events:
    first, end = np.searchsorted(events.t_us, (start_us, end_us), side="left")
    return Events(events.t_us[first:end], events.x[first:end], events.y[first:end], events.p[first:end])
