"""Files below the root of a data set: paths stay inside, and names are checked."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raydet.errors import DataError
from raydet.files.text import checked_name, one_line

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
"""Suffixes of image files; the format is taken from their bytes."""
JUNK = frozenset({"__MACOSX", "@eaDir"})
"""Directories beside the data of archives and network drives, full of files with the names of images."""
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\")
"""How an absolute path of Windows begins."""


@dataclass(frozen=True)
class Root:
    """The directory of a data set. Nothing outside it is read, whatever paths the set's files name.

    The root itself may be a link; links below it must not lead out of it, but to `links_into`.
    """

    path: Path
    links_into: str | None = None
    """A directory to which links may lead, e.g. the cache of a tool for versions of data."""

    @cached_property
    def _allowed(self) -> tuple[str, ...]:
        places = (self.path,) if self.links_into is None else (self.path, self.links_into)
        return tuple(os.path.realpath(place) for place in places)

    def inside(self, name: object, where: str) -> Path:
        """The path of a file or directory, given relative to the root.

        A backslash separates directories, as on Windows, where no file has that very name.

        Raises:
            DataError: the name is absolute, has "..", or leaves the root through a link.
        """
        text = checked_name(name, where)
        is_absolute = os.path.isabs(text) or WINDOWS_PATH.match(text)
        if is_absolute or os.pardir in re.split(r"[\\/]", text):
            kind = "an absolute path of Windows, " if WINDOWS_PATH.match(text) else ""
            raise DataError(
                f"{where}: expected a path below {self.path}, got {kind}{one_line(text)!r}; move the file, or set the "
                "root"
            )
        path = self.path / text
        if "\\" in text and not os.path.exists(path):
            path = self.path / text.replace("\\", os.sep)
        return self.checked(path, where)

    def checked(self, path: Path, where: str) -> Path:
        """The path itself.

        Raises:
            DataError: a link leads out of the root.
        """
        real = os.path.realpath(path)
        if any(real == place or real.startswith(os.path.join(place, "")) for place in self._allowed):
            return path
        raise self.refused_link(path, where)

    def refused_link(self, path: Path, where: str) -> DataError:
        """The error of a link that must not be followed."""
        real = os.path.realpath(path)
        return DataError(
            f"{where}: expected a path below {self.path}, {path} is a link to {one_line(real)}; links are not "
            "followed unless you allow it, for safety: put the files themselves there, or name the directory of the "
            "store that links may lead into, --data 'FORMAT:PATH?follow_links=STORE'"
        )

    def directory(self, name: str) -> Path:
        """The path of a directory below the root.

        Raises:
            DataError: there is no such directory.
        """
        path = self.inside(name, str(self.path))
        if not path.is_dir():
            raise DataError(f"{self.path}: expected the directory {name}/, it does not exist; check the path")
        return path


def files_in(
    root: Root, directory: Path, suffixes: Collection[str], *, by_path: bool = False
) -> dict[str, Path | DataError]:
    """The files in a directory tree by stem, sorted. Hidden ones, and those of `JUNK`, are passed over.

    Args:
        directory: below `root`.
        suffixes: in lower case; other files are ignored.
        by_path: by the path below `directory` without the suffix, so that files of different directories may have the
            same stem.

    Returns:
        A path, or the `DataError` of a file that must not be read: its name or that of a parent directory has control
        characters or is not UTF-8, its stem is not unique, or it, or a directory, is a link that is not allowed.
        Links to directories are only followed if the root allows links.

    Raises:
        DataError: a directory cannot be read.
    """
    found: dict[str, Path | DataError] = {}
    seen = set()
    for parent, directories, names in os.walk(directory, onerror=_refuse_directory, followlinks=True):
        for name in sorted(directories):
            path = Path(parent, name)
            if is_passed_over(name):
                directories.remove(name)
            elif path.is_symlink():
                try:
                    if root.links_into is None:
                        raise root.refused_link(path, one_line(path.parent))
                    root.checked(path, one_line(path.parent))
                except DataError as error:
                    found[name] = error
                    directories.remove(name)
        directories.sort()
        if (
            os.path.realpath(parent) in seen
        ):  # a link to a directory above it, or to one that another link leads to
            directories.clear()
            continue
        seen.add(os.path.realpath(parent))
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes and not is_passed_over(name):
                file = _checked_file(root, directory, Path(parent, name))
                if by_path:
                    stem = Path(parent, stem).relative_to(directory).as_posix()
                if stem in found:
                    first, second = sorted(one_line(each) for each in (found[stem], file))
                    file = DataError(
                        f"{first}: expected one file of the name {one_line(stem)}, got another, {second}; rename or "
                        "delete it"
                    )
                found[stem] = file
    return dict(sorted(found.items()))


def is_passed_over(name: str) -> bool:
    """Whether a file or a directory is none of the user's: hidden, or left by a system."""
    return name.startswith(".") or name in JUNK


def directories_in(directory: Path) -> list[str]:
    """The sorted names of a directory's subdirectories, without those that are passed over.

    Raises:
        DataError: the directory cannot be read.
    """
    try:
        return sorted(
            entry.name for entry in os.scandir(directory) if entry.is_dir() and not is_passed_over(entry.name)
        )
    except OSError as error:
        _refuse_directory(error)
        raise


def _refuse_directory(error: OSError) -> None:
    reason = error.strerror or error
    raise DataError(f"{one_line(error.filename)}: expected a directory, {reason}; check the path") from error


def _checked_file(root: Root, directory: Path, path: Path) -> Path | DataError:
    parent = directory
    try:
        for part in path.relative_to(directory).parts:
            checked_name(part, str(parent))
            parent /= part
        # Directories that are links have been checked: only the file itself can lead out.
        return root.checked(path, str(path.parent)) if path.is_symlink() else path
    except DataError as error:
        return error
