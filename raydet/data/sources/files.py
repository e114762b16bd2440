"""Files that someone else may have written: named safely, read within limits, refused on one line."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from raydet.errors import DataError

MAX_TEXT_BYTES = 8 * 2**20
"""Of one label file, list or XML: 10,000 boxes (`boxes.MAX_BOXES`) take a tenth of it."""
MAX_JSON_BYTES = 2**30
"""A json describes a whole set."""
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
"""What an image's name may end with; its bytes decide what it is."""
SHOWN_CHARACTERS = 120
"""Of a text from a file, in a message."""

_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def one_line(value: object) -> str:
    r"""A value from a file or of another library, for a message: on one line and not too long.

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
    raydet.errors.DataError: a.json, image 1: wanted a name without control characters, got 'b\x00'; rename it

    Raises:
        DataError: it is empty or no text, or has characters that break lines or cannot be written.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: wanted a name, got {one_line(repr(name))}; name it")
    if not _UNPRINTABLE.isdisjoint(map(unicodedata.category, name)):
        raise DataError(
            f"{where}: wanted a name without control characters, got {one_line(ascii(name))}; rename it"
        )
    return name


@dataclass(frozen=True)
class Root:
    """A directory that holds a set. Nothing outside it is read, whatever the set's files name.

    The root itself may be a link; below it, a link must not lead out.
    """

    path: Path

    @cached_property
    def _real(self) -> str:
        return os.path.realpath(self.path)

    def inside(self, name: object, where: str) -> Path:
        """The path of a file or directory that is named relative to the root.

        Raises:
            DataError: the name is absolute, goes upwards, or leaves the root through a link.
        """
        text = checked_name(name, where)
        if os.path.isabs(text) or os.pardir in text.split(os.sep):
            raise DataError(
                f"{where}: wanted a path below {self.path}, got {one_line(text)!r}; move the file, or set the root"
            )
        return self.holding(self.path / text, where)

    def holding(self, path: Path, where: str) -> Path:
        """The path itself, if no link leads it out of the root.

        Raises:
            DataError: it does.
        """
        real = os.path.realpath(path)
        if real != self._real and not real.startswith(os.path.join(self._real, "")):
            raise DataError(
                f"{where}: wanted a path below {self.path}, {path} is a link to {one_line(real)}; put the "
                "file itself there"
            )
        return path

    def directory(self, name: str) -> Path:
        """A directory below the root.

        Raises:
            DataError: it is not there.
        """
        path = self.inside(name, str(self.path))
        if not path.is_dir():
            raise DataError(f"{self.path}: wanted a directory, {name}/ is not there; check the path")
        return path


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading: no pipe and no device, which could be waited for without end.

    Raises:
        OSError: the file cannot be opened, or is no file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is no file")
    return file


def read_bytes(path: Path, *, wanted: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """All of a file.

    Args:
        wanted: what the file should be, for messages.
        limit: bytes that it may have.

    Raises:
        DataError: it cannot be read, or is larger.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: wanted {wanted}, {_reason(error)}; check the path") from error
    if len(content) > limit:
        raise DataError(
            f"{path}: wanted {wanted} of at most {limit} bytes, got more; check that it is the right file"
        )
    return content


def read_text(path: Path, *, wanted: str, limit: int = MAX_TEXT_BYTES) -> str:
    """All of a text file; a byte order mark is taken off.

    Raises:
        DataError: it cannot be read, is larger than `limit`, or is no UTF-8.
    """
    content = read_bytes(path, wanted=wanted, limit=limit)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: wanted {wanted} as UTF-8, got bytes that are no text in it (at byte {error.start}); save it "
            "as UTF-8"
        ) from error
    if "\0" in text:  # valid UTF-8, but what UTF-16 without its mark looks like
        raise DataError(f"{path}: wanted {wanted} as UTF-8, got text with NUL bytes; save it as UTF-8")
    return text


def read_json(path: Path, *, wanted: str) -> Any:
    """The value of a json file.

    Raises:
        DataError: it cannot be read, or is no json.
    """
    text = read_text(path, wanted=wanted, limit=MAX_JSON_BYTES)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path}: wanted {wanted}, got one nested too deeply; write it again") from error
    except ValueError as error:
        raise DataError(
            f"{path}: wanted {wanted}, got a broken one ({one_line(error)}); write it again"
        ) from error


def read_names(path: Path, *, wanted: str) -> tuple[str, ...]:
    """The lines of a file that names something: not empty, all different.

    Raises:
        DataError: it is not so.
    """
    names = tuple(line.strip() for line in read_text(path, wanted=wanted).splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise DataError(
            f"{path}: wanted {wanted}, all different, got {one_line(list(names))}; correct the file"
        )
    return tuple(checked_name(name, str(path)) for name in names)


def files_in(root: Root, directory: Path, suffixes: Collection[str]) -> dict[str, Path | DataError]:
    """The files of a directory and of those below it, by their name without its ending, in the order of the names.

    Args:
        directory: below `root`.
        suffixes: in small letters; other files are passed over.

    Returns:
        A file that must not be read as its error: its name, or that of a directory above it, has control characters
        or is no UTF-8; the name is there twice; or it is a link out of the root. So is a link to a directory: it could
        lead in a circle.

    Raises:
        DataError: a directory cannot be read.
    """
    found: dict[str, Path | DataError] = {}
    for parent, directories, names in os.walk(directory, onerror=_refuse_directory):
        for name in directories:
            if os.path.islink(os.path.join(parent, name)):
                shown = one_line(os.path.join(parent, name))
                found[name] = DataError(
                    f"{shown}: wanted a directory, got a link to one; put the files themselves there"
                )
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes:
                file = _checked_file(root, directory, Path(parent, name))
                found[stem] = file if stem not in found else _twins(stem, found[stem], file)
    return dict(sorted(found.items()))


def directories_in(directory: Path) -> list[str]:
    """The names of the directories below one, sorted.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    except OSError as error:
        _refuse_directory(error)
        raise


def _refuse_directory(error: OSError) -> None:
    shown = one_line(error.filename)
    raise DataError(f"{shown}: wanted a directory, {_reason(error)}; check the path") from error


def _checked_file(root: Root, directory: Path, path: Path) -> Path | DataError:
    place = directory
    try:
        for part in path.relative_to(directory).parts:
            checked_name(part, str(place))
            place /= part
        # The walk follows no links, so only the file itself can lead out.
        return root.holding(path, str(path.parent)) if path.is_symlink() else path
    except DataError as error:
        return error


def _twins(stem: str, *files: Path | DataError) -> DataError:
    shown = sorted(one_line(file) for file in files)
    return DataError(
        f"{shown[0]}: wanted one file of the name {one_line(stem)}, got another, {shown[1]}; rename or delete it"
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
