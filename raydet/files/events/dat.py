"""DAT files of Prophesee (Gen1 and 1 Mpx automotive sets): a text header, two bytes, then 8 bytes per event.

An event is a time of 32 bits, in microseconds, then x (14 bits), y (14 bits) and polarity (4 bits), little-endian. The
time restarts after 71 minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raydet.errors import DataError
from raydet.files.events.headers import checked_size, read_text_header
from raydet.files.events.recording import (
    BLOCK,
    Block,
    EventRecording,
    Events,
    State,
    num_words,
    read_words,
    unwrapped,
)

PAIR = "<u4"
EVENT_TYPES = (0, 12)
"""2D and CD: both have the layout above."""
EVENT_BYTES = 8
PERIOD_US = 2**32


def open_dat(path: Path, size_hw: tuple[int, int] | None = None) -> EventRecording:
    """A DAT file.

    Args:
        size_hw: of the sensor, for files whose header does not tell it.

    Raises:
        DataError: it is no DAT file of version 2 with 2D or CD events, or ends within an event.
    """
    header = read_text_header(path)
    if header.encoding is not None:
        raise DataError(
            f"{path}: expected a DAT file, its header says EVT {header.encoding}; name it .raw and open it as such"
        )
    version = header.fields.get("version", "2")
    if version != "2":
        raise DataError(
            f"{path}: expected a DAT file of version 2, got {version}; convert it with Metavision"
        )
    kind, size = (int(value) for value in read_words(path, "u1", header.start, 2))
    if kind not in EVENT_TYPES or size != EVENT_BYTES:
        raise DataError(
            f"{path}: expected events of type 0 (2D) or 12 (CD) and {EVENT_BYTES} bytes, got type {kind} of {size} "
            "bytes; take the file with the change detection events"
        )
    start = header.start + 2
    num_events = num_words(path, f"V{EVENT_BYTES}", start, "events")
    height, width = checked_size(path, header.size_hw, size_hw)
    return EventRecording(path, height, width, _DatBlocks(path, start, num_events))


@dataclass
class _DatBlocks:
    path: Path
    start: int
    num_events: int
    initial: State = ()

    @property
    def num_blocks(self) -> int:
        return -(-self.num_events // BLOCK)

    def read(self, block: int, state: State) -> Block:
        first = block * BLOCK
        count = min(BLOCK, self.num_events - first)
        pairs = read_words(self.path, PAIR, self.start + first * EVENT_BYTES, 2 * count).reshape(-1, 2)
        times_N, packed_N = unwrapped(pairs[:, 0], state[0] if state else None, PERIOD_US), pairs[:, 1]
        events = Events(
            t_us=times_N,
            x=(packed_N & 0x3FFF).astype(np.uint16),
            y=(packed_N >> 14 & 0x3FFF).astype(np.uint16),
            p=(packed_N >> 28 > 0).astype(np.uint8),
        )
        return Block(events, (int(times_N[-1]),))
