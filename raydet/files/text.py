"""Untrusted text files: reads have a size limit, and errors are single lines."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from pathlib import Path
from typing import Any, BinaryIO

from raydet.errors import DataError

MAX_TEXT_BYTES = 8 * 2**20
"""Limit for a label file, list or XML: 10,000 boxes take a tenth of it."""
MAX_JSON_BYTES = 2**30
SHOWN_CHARACTERS = 120
"""Most characters that a message quotes from a file."""

_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def one_line(value: object) -> str:
    r"""A value from a file or another library as one short line for a message.

    >>> one_line("a\nb")
    'a b'
    """
    try:
        whole = str(value)
    except RecursionError:
        whole = "a value that is nested too deeply"
    if len(whole) <= SHOWN_CHARACTERS and whole.isprintable():
        return whole
    text = "".join(" " if unicodedata.category(c) in _UNPRINTABLE else c for c in whole[:1000])
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def checked_name(name: object, where: str) -> str:
    r"""The name of a file, an image, a group or a class.

    >>> checked_name("b\0", "a.json, image 1")
    Traceback (most recent call last):
    raydet.errors.DataError: a.json, image 1: expected a name without control characters, got 'b\x00'; rename it

    Raises:
        DataError: the name is empty, not a string, or has characters that break lines or cannot be written.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: expected a name, got {one_line(repr(name))}; name it")
    if not _UNPRINTABLE.isdisjoint(map(unicodedata.category, name)):
        raise DataError(
            f"{where}: expected a name without control characters, got {one_line(ascii(name))}; rename it"
        )
    return name


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device could block forever.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a regular file")
    return file


def read_bytes(path: Path, *, expected: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a file.

    Args:
        expected: what the file should be, for messages.
        limit: maximum size in bytes.

    Raises:
        DataError: the file cannot be read, or is larger.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: expected {expected}, {error.strerror or error}; check the path") from error
    if len(content) > limit:
        raise DataError(
            f"{path}: expected {expected} of at most {limit} bytes, got more; check that it is the right file"
        )
    return content


def read_text(path: Path, *, expected: str, limit: int = MAX_TEXT_BYTES) -> str:
    """The content of a text file, without a byte order mark.

    Raises:
        DataError: the file cannot be read, is larger than `limit`, or is not UTF-8.
    """
    content = read_bytes(path, expected=expected, limit=limit)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected {expected} as UTF-8, got an invalid byte at {error.start}; save it as UTF-8"
        ) from error
    if "\0" in text:  # valid UTF-8, but typical of UTF-16 without its byte order mark
        raise DataError(f"{path}: expected {expected} as UTF-8, got text with NUL bytes; save it as UTF-8")
    return text


def read_json(path: Path, *, expected: str) -> Any:
    """The value of a json file.

    Raises:
        DataError: the file cannot be read, or is not valid json.
    """
    text = read_text(path, expected=expected, limit=MAX_JSON_BYTES)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path}: expected {expected}, got one nested too deeply; write it again") from error
    except ValueError as error:
        raise DataError(
            f"{path}: expected {expected}, got a broken one ({one_line(error)}); write it again"
        ) from error


def read_names(path: Path, *, expected: str) -> tuple[str, ...]:
    """The non-empty lines of a list of names.

    Raises:
        DataError: there is no name, or one is given twice.
    """
    names = tuple(line.strip() for line in read_text(path, expected=expected).splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise DataError(
            f"{path}: expected {expected}, without repetition, got {one_line(list(names))}; correct the file"
        )
    return tuple(checked_name(name, str(path)) for name in names)
