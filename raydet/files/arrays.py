"""Headers of untrusted .npy files."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from raydet.errors import DataError
from raydet.files.text import one_line, open_regular

VERSIONS = ((1, 0), (2, 0), (3, 0))
"""The versions of the .npy format that numpy writes."""


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What a .npy file says of itself, and how long it is."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    """Its first axis changes fastest."""
    start: int
    """Position of its first value in the file."""
    file_bytes: int

    def check_complete(self, path: Path) -> None:
        """Refuse a file that is shorter or longer than its header says.

        Raises:
            DataError: it is.
        """
        expected = self.start + math.prod(self.shape) * self.dtype.itemsize
        if self.file_bytes != expected:
            raise DataError(
                f"{path}: expected {expected} bytes for {self.shape} {one_line(self.dtype)}, the file has "
                f"{self.file_bytes}; it is truncated or damaged, copy it again"
            )


def read_array_header(path: Path) -> ArrayHeader:
    """The header of a .npy file; nothing of it is checked against the caller's wishes.

    Raises:
        DataError: the file cannot be opened, or is no .npy file.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise DataError(
            f"{path}: expected a .npy array, {error.strerror or error}; check the file"
        ) from error
    with file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about headers written by Python 2, which are read correctly
                version = npy_format.read_magic(file)
                if version not in VERSIONS:
                    raise ValueError(f"of format version {version}")
                first = version == (1, 0)
                read = npy_format.read_array_header_1_0 if first else npy_format.read_array_header_2_0
                shape, is_fortran, dtype = read(file)
        except Exception as error:  # the header is a Python literal: numpy's reader fails in many ways
            raise DataError(
                f"{path}: expected a .npy array, got another file ({one_line(error)}); write it with numpy.save"
            ) from error
        start = file.tell()
        file_bytes = file.seek(0, 2)
    return ArrayHeader(shape, dtype, is_fortran, start, file_bytes)
