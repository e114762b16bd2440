"""Files of event cameras, written word by word from the formats' descriptions, without the decoders."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from raydet.files.events.recording import Events

Row = tuple[int, int, int, int]
"""t, x, y, p."""


def random_rows(
    seed: int,
    count: int,
    *,
    size_hw: tuple[int, int] = (480, 640),
    start_us: int = 0,
    longest_gap_us: int = 900,
) -> list[Row]:
    """Events in the order of time; many share a time and a row, as those of real cameras do."""
    random = Random(seed)
    rows: list[Row] = []
    t, y, p = start_us, random.randrange(size_hw[0]), 0
    while len(rows) < count:
        if random.random() < 0.3:
            t += random.choice((1, 1, 60, longest_gap_us))
        if random.random() < 0.3:
            y, p = random.randrange(size_hw[0]), random.randrange(2)
        first = random.randrange(size_hw[1])
        xs = range(first, min(first + random.randrange(1, 40), size_hw[1]))
        rows += [(t, x, y, p) for x in xs if random.random() < 0.6]
    return rows[:count]


def events_of(rows: Sequence[Row]) -> Events:
    t, x, y, p = np.array(rows, np.int64).reshape(-1, 4).T
    return Events(t, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8))


def assert_equal(found: Events, expected: Events) -> None:
    for name, values, others in zip(Events._fields, found, expected, strict=True):
        assert values.dtype == others.dtype, name
        np.testing.assert_array_equal(values, others, err_msg=name)


def write_dat(
    path: Path, rows: Sequence[Row], *, header: str | None = None, kind: int = 12, size: int = 8
) -> Path:
    header = (
        "% Data file containing CD events.\n% Version 2\n% Height 480\n% Width 640\n"
        if header is None
        else header
    )
    words = [struct.pack("<II", t % 2**32, x | y << 14 | p << 28) for t, x, y, p in rows]
    path.write_bytes(header.encode() + bytes((kind, size)) + b"".join(words))
    return path


def evt2_words(rows: Sequence[Row], random: Random) -> list[int]:
    words: list[int] = []
    high = None
    for t, x, y, p in rows:
        if t >> 6 != high or random.random() < 0.02:
            high = t >> 6
            words.append(0x8 << 28 | high % 2**28)
        if random.random() < 0.02:
            words.append(random.choice((0xA, 0xE, 0xF)) << 28 | random.randrange(2**28))
        words.append(p << 28 | t % 64 << 22 | x << 11 | y)
    return words


def evt3_words(rows: Sequence[Row], random: Random) -> list[int]:
    """Runs of one time, row and polarity become vectors, now and then; everything else is a word of its own."""
    words: list[int] = []
    high = low = row = None
    position = 0
    while position < len(rows):
        t, x, y, p = rows[position]
        if t >> 12 != high:
            high, low = t >> 12, None
            words.append(0x8 << 12 | high % 2**12)
        if t % 2**12 != low and not (low is None and t % 2**12 == 0):
            low = t % 2**12
            words.append(0x6 << 12 | low)
        if y != row:
            row = y
            words.append(random.randrange(2) << 11 | y)
        if random.random() < 0.02:
            words.append(random.choice((0x7, 0xA, 0xE, 0xF)) << 12 | random.randrange(2**12))
        end = position + 1
        while (
            end < len(rows)
            and rows[end][0] == t
            and rows[end][2:] == (y, p)
            and rows[end][1] > rows[end - 1][1]
        ):
            end += 1
        if end - position > 1 and random.random() < 0.8:
            words += _vectors([each[1] for each in rows[position:end]], p, random)
            position = end
        else:
            words.append(0x2 << 12 | p << 11 | x)
            position += 1
    return words


def _vectors(xs: list[int], p: int, random: Random) -> list[int]:
    """A base, then masks of 12 or 8 pixels up to the last one; empty masks move on as others do."""
    base = max(0, xs[0] - random.randrange(6))
    words = [0x3 << 12 | p << 11 | base]
    while base <= xs[-1]:
        length = random.choice((8, 12))
        mask = sum(1 << x - base for x in xs if base <= x < base + length)
        words.append((0x4 if length == 12 else 0x5) << 12 | mask)
        base += length
    return words


def write_raw(path: Path, words: Sequence[int], *, header: str, width: int) -> Path:
    """Words of 16 or 32 bits behind a header."""
    path.write_bytes(header.encode() + struct.pack(f"<{len(words)}{'H' if width == 16 else 'I'}", *words))
    return path


EVT2_HEADER = "% Date 2026-01-01 00:00:00\n% evt 2.0\n% geometry 640x480\n% end\n"
EVT3_HEADER = "% camera_integrator_name Prophesee\n% format EVT3;height=480;width=640\n% end\n"
