"""Columns of Arrow files as views that never look beyond their bytes, whatever a file says.

Arrow checks that buffers lie within the file, not that offsets within a buffer make sense; here each access does.

Legend: R rows.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydet.data.storage import first_line
from raydet.errors import DataError


def mapped_batch(path: Path, schema: pa.Schema) -> tuple[mmap.mmap, pa.RecordBatch]:
    """The one batch of an Arrow file, in a private memory map, and the map.

    The map is copy-on-write: torch wants memory that could be written, and the file must not be.

    Raises:
        DataError: the file is no Arrow file, or one of another layout.
        FileNotFoundError: there is none.
    """
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(memory)))
        if not reader.schema.equals(schema) or reader.num_record_batches != 1:
            raise DataError(
                f"{path}: wanted one batch of the columns {', '.join(schema.names)}, got {reader.num_record_batches} "
                f"of {', '.join(reader.schema.names)}; convert the set again"
            )
        batch = reader.get_batch(0)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: wanted an Arrow file, got something else or a part ({first_line(error)}); copy the file again, "
            "or convert the set again"
        ) from None
    if not all(_lies_in(memory, buffer) for column in batch.columns for buffer in _buffers(column)):
        raise DataError(
            f"{path}: wanted columns as they are, got some that Arrow has unpacked; convert the set again"
        )
    return memory, batch


def _lies_in(memory: mmap.mmap, buffer: pa.Buffer) -> bool:
    begin = buffer.address - pa.py_buffer(memory).address
    return buffer.size == 0 or 0 <= begin <= begin + buffer.size <= len(memory)


def _buffers(column: pa.Array) -> list[pa.Buffer]:
    buffers = column.buffers()
    if isinstance(column, pa.DictionaryArray):
        buffers += column.dictionary.buffers()
    return [buffer for buffer in buffers if buffer is not None]


def numbers(column: pa.Array, dtype: str, *, where: str) -> NDArray[Any]:
    """[R], without a copy.

    Raises:
        DataError: there are fewer than rows, or holes.
    """
    return _first(column.buffers()[-1], dtype, len(column), column, where)


def _first(buffer: pa.Buffer | None, dtype: str, count: int, column: pa.Array, where: str) -> NDArray[Any]:
    values = np.frombuffer(buffer if buffer is not None else b"", dtype=dtype)
    if column.null_count or column.offset or len(values) < count:
        raise DataError(
            f"{where}: wanted {count} values without holes, got {len(values)}; convert the set again"
        )
    return values[:count]


@dataclass(frozen=True, slots=True)
class Lists:
    """Values of one kind, some for each row."""

    offsets: NDArray[np.int64]
    """[R + 1]."""
    values: NDArray[Any]
    where: str

    @classmethod
    def of(cls, column: pa.Array, dtype: str, *, where: str) -> Lists:
        """A view of a large_list, large_binary or large_string column.

        Raises:
            DataError: it has too few offsets, or holes.
        """
        buffers = column.buffers()
        offsets = _first(buffers[1], "<i8", len(column) + 1, column, where)
        return cls(
            offsets, np.frombuffer(buffers[-1] if buffers[-1] is not None else b"", dtype=dtype), where
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def span(self, row: int) -> tuple[int, int]:
        """First value of a row, and first behind it.

        Raises:
            DataError: they lie outside.
        """
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        if not 0 <= start <= end <= len(self.values):
            raise DataError(
                f"{self.where}, row {row}: wanted offsets in 0..{len(self.values)}, got {start} and {end}; the file "
                "is damaged, convert the set again"
            )
        return start, end

    def __getitem__(self, row: int) -> NDArray[Any]:
        start, end = self.span(row)
        return self.values[start:end]


class Texts(Sequence[str]):
    """A column of text, read when it is looked at."""

    def __init__(self, column: pa.Array, *, where: str) -> None:
        self._bytes = Lists.of(column, "u1", where=where)

    def __len__(self) -> int:
        return len(self._bytes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = _checked(index, len(self))
        try:
            return self._bytes[row].tobytes().decode()
        except UnicodeDecodeError:
            raise DataError(
                f"{self._bytes.where}, row {row}: wanted text in UTF-8; convert the set again"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


class Names(Sequence[str]):
    """A column of few different texts; equal ones are one object, so that a list of them is small."""

    def __init__(self, column: pa.DictionaryArray, *, where: str) -> None:
        self._names = list(Texts(column.dictionary, where=where))
        self._codes_R = numbers(column.indices, "<i4", where=where)
        self._where = where

    def __len__(self) -> int:
        return len(self._codes_R)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = _checked(index, len(self))
        code = int(self._codes_R[row])
        if not 0 <= code < len(self._names):
            raise DataError(
                f"{self._where}, row {row}: no group has the number {code}; convert the set again"
            )
        return self._names[code]

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


def _checked(index: int, length: int) -> int:
    """As lists count: from the end where negative."""
    row = index + length if index < 0 else index
    if not 0 <= row < length:
        raise IndexError(index)
    return row
