"""Events as a .npy array: integers [N, 4] with the columns t, x, y, p, or a structured array with these fields.

Times are in microseconds; p is 0 or -1 where it became darker, 1 where brighter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.files.arrays import ArrayHeader, read_array_header
from raydet.files.events.headers import checked_size
from raydet.files.events.recording import BLOCK, MAX_SIDE, Block, EventRecording, Events, State, read_words
from raydet.files.text import one_line

COLUMNS = ("t", "x", "y", "p")


def open_npy(path: Path, size_hw: tuple[int, int] | None = None) -> EventRecording:
    """A .npy file.

    Args:
        size_hw: of the sensor, which the file never tells.

    Raises:
        DataError: the file is no such array.
    """
    header = read_array_header(path)
    names = header.dtype.names
    if names is None:
        is_table = len(header.shape) == 2 and header.shape[1] == len(COLUMNS) and header.dtype.kind in "iu"
    else:
        is_table = len(header.shape) == 1 and all(
            name in names and header.dtype[name].kind in "iub" and not header.dtype[name].shape
            for name in COLUMNS
        )
    if not is_table or header.dtype.hasobject:
        raise DataError(
            f"{path}: expected integers [N, 4] (t in microseconds, x, y, p), or an array with fields of these names, "
            f"got {one_line(header.dtype)} {one_line(header.shape)}; convert it"
        )
    header.check_complete(path)
    height, width = checked_size(path, None, size_hw)
    return EventRecording(path, height, width, _NpyBlocks(path, header))


@dataclass
class _NpyBlocks:
    path: Path
    header: ArrayHeader
    initial: State = ()

    @property
    def num_blocks(self) -> int:
        return -(-self.header.shape[0] // BLOCK)

    def read(self, block: int, state: State) -> Block:
        first, num_events = block * BLOCK, self.header.shape[0]
        count = min(BLOCK, num_events - first)
        itemsize, dtype = self.header.dtype.itemsize, self.header.dtype
        columns: dict[str, NDArray[Any]]
        if dtype.names is not None:
            content = read_words(self.path, f"V{itemsize}", self.header.start + first * itemsize, count)
            rows = content.view(dtype)
            columns = {name: rows[name] for name in COLUMNS}
        elif self.header.is_fortran:
            starts = [(column * num_events + first) * itemsize for column in range(len(COLUMNS))]
            parts = [read_words(self.path, dtype.str, self.header.start + start, count) for start in starts]
            columns = dict(zip(COLUMNS, parts, strict=True))
        else:
            start = self.header.start + first * len(COLUMNS) * itemsize
            table = read_words(self.path, dtype.str, start, count * len(COLUMNS)).reshape(-1, len(COLUMNS))
            columns = dict(zip(COLUMNS, table.T, strict=True))
        return Block(events_of_columns(columns, f"{self.path}, from event {first}"), ())


def events_of_columns(columns: Mapping[str, NDArray[Any]], where: str) -> Events:
    """Integers of any type as events.

    Raises:
        DataError: a value cannot be what its column says.
    """
    for name, low, high in (("t", 0, 2**62), ("x", 0, MAX_SIDE - 1), ("y", 0, MAX_SIDE - 1), ("p", -1, 1)):
        values_N = columns[name]
        if len(values_N) and not (low <= int(values_N.min()) and int(values_N.max()) <= high):
            raise DataError(
                f"{where}: expected {name} in {low}..{high}, got {values_N.min()}..{values_N.max()}; check that the "
                "columns are t, x, y, p"
            )
    return Events(
        t_us=columns["t"].astype(np.int64),
        x=columns["x"].astype(np.uint16),
        y=columns["y"].astype(np.uint16),
        p=(columns["p"] > 0).astype(np.uint8),
    )
