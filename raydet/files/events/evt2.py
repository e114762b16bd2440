"""Raw files of Prophesee in EVT 2.0: 32-bit words, of which one in a while carries the upper 28 bits of the time.

Bits 28 to 31 of a word say what it is. An event has the lower 6 bits of its time (22..27), x (11..21), y (0..10); its
polarity is its type. The time restarts after 2^34 microseconds, 4.8 hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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

WORD = "<u4"
CD_OFF, CD_ON, TIME_HIGH = 0x0, 0x1, 0x8
OTHERS = (0xA, 0xE, 0xF)
"""External triggers, and what vendors add: they are passed over."""
HIGH_PERIOD = 2**28


def open_evt2(path: Path, size_hw: tuple[int, int] | None = None) -> EventRecording:
    """A raw file whose header says EVT 2.0.

    Args:
        size_hw: of the sensor, for files whose header does not tell it.

    Raises:
        DataError: the header says something else, or the file ends within a word.
    """
    header = read_text_header(path)
    if header.encoding != "2.0":
        raise DataError(
            f"{path}: expected EVT 2.0, its header says EVT {header.encoding or 'nothing'}; open it as what it is"
        )
    count = num_words(path, WORD, header.start, "words")
    height, width = checked_size(path, header.size_hw, size_hw)
    return EventRecording(path, height, width, _Evt2Blocks(path, header.start, count))


@dataclass
class _Evt2Blocks:
    path: Path
    start: int
    count: int
    initial: State = ()

    @property
    def num_blocks(self) -> int:
        return -(-self.count // BLOCK)

    def read(self, block: int, state: State) -> Block:
        first = block * BLOCK
        words_W = read_words(self.path, WORD, self.start + first * 4, min(BLOCK, self.count - first))
        return decode_evt2(words_W, state, f"{self.path}, from word {first}")


def decode_evt2(words_W: NDArray[np.uint32], state: State, where: str) -> Block:
    """The events of some words.

    Args:
        words_W: uint32 [W].
        state: the upper part of the time, unless none has come yet.

    Raises:
        DataError: a word is of no known type.
    """
    kinds_W = (words_W >> 28).astype(np.uint8)
    is_event_W = kinds_W <= CD_ON
    (high_at,) = np.nonzero(kinds_W == TIME_HIGH)
    rest_W = kinds_W[~is_event_W & (kinds_W != TIME_HIGH)]
    if not np.isin(rest_W, OTHERS).all():
        bad = int(rest_W[~np.isin(rest_W, OTHERS)][0])
        raise DataError(
            f"{where}: EVT 2.0 has no words of type {bad:#x}; the file is damaged or of another encoding, copy it again"
        )
    previous = state[0] if state else None
    highs_K = unwrapped(words_W[high_at] & 0xFFFFFFF, previous, HIGH_PERIOD)
    (event_at,) = np.nonzero(is_event_W)
    place_N = np.cumsum(kinds_W == TIME_HIGH)[event_at]  # how many came before
    num_unplaced = int(np.searchsorted(place_N, 0, side="right")) if previous is None else 0
    words_N, place_N = words_W[event_at[num_unplaced:]], place_N[num_unplaced:]
    high_N = np.concatenate([[previous or 0], highs_K])[place_N]
    events = Events(
        t_us=high_N << 6 | (words_N >> 22 & 0x3F).astype(np.int64),
        x=(words_N >> 11 & 0x7FF).astype(np.uint16),
        y=(words_N & 0x7FF).astype(np.uint16),
        p=(words_N >> 28).astype(np.uint8),
    )
    return Block(events, (int(highs_K[-1]),) if len(highs_K) else state, num_unplaced)
