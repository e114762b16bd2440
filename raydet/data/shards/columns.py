"""Columns of Arrow files as views that never read out of bounds, whatever a file contains.

Arrow checks that buffers are within the file, not that the offsets in a buffer are valid; here every access does.

Legend: R rows.
"""

from __future__ import annotations

import mmap
from abc import abstractmethod
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
    """The private memory map of an Arrow file, and its single batch.

    The map is copy-on-write: torch requires writable memory, and the file must not change.

    Raises:
        DataError: the file is not an Arrow file, or has another layout.
        FileNotFoundError: the file does not exist.
    """
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(memory)))
        if not reader.schema.equals(schema) or reader.num_record_batches != 1:
            raise DataError(
                f"{path}: expected one batch of the columns {', '.join(schema.names)}, got {reader.num_record_batches} "
                f"of {', '.join(reader.schema.names)}; convert the set again"
            )
        batch = reader.get_batch(0)
    except (FileNotFoundError, DataError):
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: expected an Arrow file, got another one or a part of one ({first_line(error)}); copy the file "
            "again, or convert the set again"
        ) from None
    start = pa.py_buffer(memory).address
    for column in batch.columns:
        buffers = column.buffers()
        if isinstance(column, pa.DictionaryArray):
            buffers += column.dictionary.buffers()
        for buffer in buffers:
            if buffer and not start <= buffer.address <= buffer.address + buffer.size <= start + len(memory):
                raise DataError(f"{path}: columns must not be compressed by Arrow; convert the set again")
    return memory, batch


def numbers(column: pa.Array, dtype: str, *, where: str) -> NDArray[Any]:
    """The numbers of a column, [R], without a copy.

    Raises:
        DataError: there are nulls, or fewer numbers than rows.
    """
    return _first_values(column.buffers()[-1], dtype, len(column), column, where)


def _first_values(
    buffer: pa.Buffer | None, dtype: str, count: int, column: pa.Array, where: str
) -> NDArray[Any]:
    values = np.frombuffer(buffer if buffer is not None else b"", dtype=dtype)
    if column.null_count or column.offset or len(values) < count:
        raise DataError(
            f"{where}: expected {count} values without nulls, got {len(values)}; convert the set again"
        )
    return values[:count]


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of lists: any number of values per row."""

    offsets: NDArray[np.int64]
    """[R + 1]."""
    values: NDArray[Any]
    where: str

    @classmethod
    def of(cls, column: pa.Array, dtype: str, *, where: str) -> Lists:
        """A view of a large_list, large_binary or large_string column.

        Raises:
            DataError: there are nulls, or too few offsets.
        """
        _, offsets, *_, values = column.buffers()
        values = np.frombuffer(b"" if values is None else values, dtype=dtype)
        return cls(_first_values(offsets, "<i8", len(column) + 1, column, where), values, where)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def span(self, row: int) -> tuple[int, int]:
        """Start and end of a row's values.

        Raises:
            DataError: they are out of range.
        """
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        if not 0 <= start <= end <= len(self.values):
            raise DataError(
                f"{self.where}, row {row}: expected offsets in 0..{len(self.values)}, got {start} and {end}; the file "
                "is damaged, convert the set again"
            )
        return start, end

    def __getitem__(self, row: int) -> NDArray[Any]:
        start, end = self.span(row)
        return self.values[start:end]


class _Strings(Sequence[str]):
    """A lazy column of strings: each is decoded on access."""

    @abstractmethod
    def _decode(self, row: int) -> str: ...

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        rows = range(len(self))[index]
        return self._decode(rows) if isinstance(rows, int) else [self._decode(row) for row in rows]

    def __iter__(self) -> Iterator[str]:
        return map(self._decode, range(len(self)))


class Texts(_Strings):
    """A column of strings."""

    def __init__(self, column: pa.Array, *, where: str) -> None:
        self._bytes = Lists.of(column, "u1", where=where)

    def __len__(self) -> int:
        return len(self._bytes)

    def _decode(self, row: int) -> str:
        try:
            return self._bytes[row].tobytes().decode()
        except UnicodeDecodeError:
            raise DataError(
                f"{self._bytes.where}, row {row}: expected UTF-8 text; convert the set again"
            ) from None


class Names(_Strings):
    """A column with few distinct strings; equal ones are one object, so that a list of them is small."""

    def __init__(self, column: pa.DictionaryArray, *, where: str) -> None:
        self._names = list(Texts(column.dictionary, where=where))
        self._codes_R = numbers(column.indices, "<i4", where=where)
        self._where = where

    def __len__(self) -> int:
        return len(self._codes_R)

    def _decode(self, row: int) -> str:
        code = int(self._codes_R[row])
        if not 0 <= code < len(self._names):
            raise DataError(
                f"{self._where}, row {row}: no group has the number {code}; convert the set again"
            )
        return self._names[code]
