"""Raw files of Prophesee in EVT 3.0: 16-bit words that change a decoder's state, some of which are events.

Bits 12 to 15 say what a word is:

    0x0 row               y of the events that follow
    0x2 event             x and polarity (bit 11)
    0x3 vector            x and polarity of the vectors that follow
    0x4 12 events         bit i: an event at x + i; then x moves by 12
    0x5 8 events          likewise, by 8
    0x6 lower time        12 bits
    0x8 upper time        12 bits; the lower ones are 0 until they come
    0x7, 0xA, 0xE, 0xF    continued values, triggers, what vendors add: passed over

The time restarts after 2^24 microseconds, 16.8 seconds. All of it is decoded without a loop over words: what a word
changes holds up to the next of its kind, so an event's time, row and vector are those at the last word before it.

Legend: W words, E words that hold events, N events.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.files.events.headers import checked_size, read_text_header
from raydet.files.events.recording import (
    BLOCK,
    Block,
    EventRecording,
    Events,
    Ints,
    State,
    num_words,
    read_words,
    unwrapped,
)

WORD = "<u2"
ROW, EVENT, VECTOR, TWELVE, EIGHT, LOW, HIGH = 0x0, 0x2, 0x3, 0x4, 0x5, 0x6, 0x8
KNOWN = np.isin(np.arange(16), (ROW, EVENT, VECTOR, TWELVE, EIGHT, LOW, 0x7, HIGH, 0xA, 0xE, 0xF))
LENGTH = np.zeros(16, np.int64)
LENGTH[[TWELVE, EIGHT]] = 12, 8
HIGH_PERIOD = 2**12
SET_BITS = [[bit for bit in range(12) if mask >> bit & 1] for mask in range(2**12)]
NUM_BITS = np.array([len(bits) for bits in SET_BITS])
BITS = np.array([bit for bits in SET_BITS for bit in bits])
FIRST_BIT = np.cumsum(NUM_BITS) - NUM_BITS
"""Where the bits of a mask begin in `BITS`."""


class _Decoder(NamedTuple):
    """What is remembered from word to word; -1: not known yet."""

    has_time: int = 0
    high: int = 0
    """The upper part of the time, without restarts."""
    time_us: int = 0
    row: int = -1
    vector_x: int = -1
    vector_p: int = 0


def open_evt3(path: Path, size_hw: tuple[int, int] | None = None) -> EventRecording:
    """A raw file whose header says EVT 3.0.

    Args:
        size_hw: of the sensor, for files whose header does not tell it.

    Raises:
        DataError: the header says something else, or the file ends within a word.
    """
    header = read_text_header(path)
    if header.encoding != "3.0":
        raise DataError(
            f"{path}: expected EVT 3.0, its header says EVT {header.encoding or 'nothing'}; open it as what it is"
        )
    count = num_words(path, WORD, header.start, "words")
    height, width = checked_size(path, header.size_hw, size_hw)
    return EventRecording(path, height, width, _Evt3Blocks(path, header.start, count))


@dataclass
class _Evt3Blocks:
    path: Path
    start: int
    count: int
    initial: State = ()

    @property
    def num_blocks(self) -> int:
        return -(-self.count // BLOCK)

    def read(self, block: int, state: State) -> Block:
        first = block * BLOCK
        words_W = read_words(self.path, WORD, self.start + first * 2, min(BLOCK, self.count - first))
        return decode_evt3(words_W, state, f"{self.path}, from word {first}")


def decode_evt3(words_W: NDArray[np.uint16], state: State, where: str) -> Block:
    """The events of some words.

    Args:
        words_W: uint16 [W].
        state: `()`, or that of the block before.

    Raises:
        DataError: a word is of no known type.
    """
    before = _Decoder(*state)
    kinds_W, values_W = (words_W >> 12).astype(np.uint8), (words_W & 0xFFF).astype(np.int64)
    if not KNOWN[kinds_W].all():
        bad = int(kinds_W[~KNOWN[kinds_W]][0])
        raise DataError(
            f"{where}: EVT 3.0 has no words of type {bad:#x}; the file is damaged or of another encoding, copy it again"
        )
    (event_at,) = np.nonzero((kinds_W == EVENT) | (kinds_W == TWELVE) | (kinds_W == EIGHT))
    is_single_E, values_E = kinds_W[event_at] == EVENT, values_W[event_at]

    is_time_W = (kinds_W == LOW) | (kinds_W == HIGH)
    has_time_K, high_K, time_K = _times(kinds_W[is_time_W] == HIGH, values_W[is_time_W], before)
    place_E = np.cumsum(is_time_W)[event_at]  # how many of these words came before
    has_time_E, time_E = has_time_K[place_E], time_K[place_E]

    is_row_W = kinds_W == ROW
    rows_K = np.concatenate([[before.row], values_W[is_row_W] & 0x7FF])
    row_E = rows_K[np.cumsum(is_row_W)[event_at]]

    (vector_at,) = np.nonzero(kinds_W == VECTOR)
    moved_W = np.cumsum(LENGTH[kinds_W])
    start_K = np.concatenate([[before.vector_x], values_W[vector_at] & 0x7FF])
    moved_K = np.concatenate([[0], moved_W[vector_at]])
    p_K = np.concatenate([[before.vector_p], values_W[vector_at] >> 11])
    place_E = np.cumsum(kinds_W == VECTOR)[event_at]
    moved_E = moved_W[event_at] - LENGTH[kinds_W[event_at]] - moved_K[place_E]
    vector_x_E = np.where(start_K[place_E] < 0, -1, start_K[place_E] + moved_E)

    x_E = np.where(is_single_E, values_E & 0x7FF, vector_x_E)
    p_E = np.where(is_single_E, values_E >> 11, p_K[place_E])
    masks_E = np.where(is_single_E, 1, np.where(kinds_W[event_at] == EIGHT, values_E & 0xFF, values_E))
    is_placed_E = has_time_E & (row_E >= 0) & (x_E >= 0)
    num_unplaced = int(NUM_BITS[masks_E[~is_placed_E]].sum())
    masks_E = np.where(is_placed_E, masks_E, 0)

    counts_E = NUM_BITS[masks_E]
    word_N = np.repeat(np.arange(len(masks_E)), counts_E)
    bit_N = BITS[
        np.arange(len(word_N)) + np.repeat(FIRST_BIT[masks_E] - np.cumsum(counts_E) + counts_E, counts_E)
    ]
    events = Events(
        t_us=time_E[word_N],
        x=np.minimum(x_E[word_N] + bit_N, 2**16 - 1).astype(
            np.uint16
        ),  # beyond any sensor, where it is refused
        y=row_E[word_N].astype(np.uint16),
        p=p_E[word_N].astype(np.uint8),
    )
    moved = int(moved_W[-1] - moved_K[-1]) if len(words_W) else 0
    after = _Decoder(
        has_time=int(has_time_K[-1]),
        high=int(high_K[-1]),
        time_us=int(time_K[-1]),
        row=int(rows_K[-1]),
        vector_x=int(start_K[-1]) + moved if start_K[-1] >= 0 else -1,
        vector_p=int(p_K[-1]),
    )
    return Block(events, after, num_unplaced)


def _times(
    is_high_K: NDArray[np.bool_], values_K: Ints, before: _Decoder
) -> tuple[NDArray[np.bool_], Ints, Ints]:
    """From before the first word of K that change the time on, [K + 1]: whether the time is known, its upper part, and
    the time."""
    known = unwrapped(values_K[is_high_K], before.high if before.has_time else None, HIGH_PERIOD)
    num_highs_K = np.concatenate([[0], np.cumsum(is_high_K)])
    high_K = np.concatenate([[before.high], known])[num_highs_K]
    low_K = np.concatenate([[before.time_us % HIGH_PERIOD], np.where(is_high_K, 0, values_K)])
    has_time_K = (num_highs_K > 0) | bool(before.has_time)
    return has_time_K, high_K, high_K * HIGH_PERIOD + low_K
