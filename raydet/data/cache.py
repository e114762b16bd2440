"""Files of shards on this machine: those of object storage in a bounded cache, which all processes of a node share.

A file is fetched once per node, its sha256 is verified once, and what was used longest ago goes first. It is kept under
its hash, so that two sets never mix. A file of a local set stays where it is; that its hash was verified is noted in
the cache, for as long as size and time of change stay.

RAYDET_CACHE_DIR (~/.cache/raydet) says where, RAYDET_CACHE_GIB (50) how much; a cache that does not hold the whole set
is slow, because images are read in random order.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from raydet.data.storage import CHUNK_BYTES, Store, first_line, sha256_of
from raydet.errors import ConfigError, DataError

DEFAULT_GIB = "50"
JUST_FETCHED_S = 60.0
"""Files younger than this are not evicted: somebody is about to open them."""

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class ShardCache:
    """A directory of files that are named by their hash."""

    directory: Path
    max_bytes: int

    @classmethod
    def of_machine(cls) -> Self:
        """As the environment says.

        Raises:
            ConfigError: RAYDET_CACHE_GIB is no number.
        """
        default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "raydet"
        directory = Path(os.environ.get("RAYDET_CACHE_DIR", default)).expanduser()
        size = os.environ.get("RAYDET_CACHE_GIB", DEFAULT_GIB)
        try:
            return cls(directory, int(float(size) * 2**30))
        except (ValueError, OverflowError):
            raise ConfigError(f"RAYDET_CACHE_GIB wants a number of GiB, got {size!r}") from None

    def fetched(self, store: Store, name: str, sha256: str, size_bytes: int) -> Path:
        """A file of a set, whole and verified, on this machine.

        Raises:
            DataError: it cannot be had, or is not the file that the manifest tells of.
        """
        where = store.shown(name)
        if store.directory is not None:
            self._verify_in_place(store.directory / name, sha256, size_bytes, where)
            return store.directory / name
        path = self.directory / "files" / f"{sha256}.arrow"
        with _usable(self.directory):
            if not _touched(path, size_bytes):
                with self._locked(sha256):
                    if not _touched(path, size_bytes):  # else another process was faster
                        self._make_room(size_bytes)
                        _download(store, name, path, sha256, where)
        return path

    def _verify_in_place(self, path: Path, sha256: str, size_bytes: int, where: str) -> None:
        try:
            found = path.stat()
            if found.st_size != size_bytes:
                raise DataError(
                    f"{where}: wanted {size_bytes} bytes, the file has {found.st_size}; it is truncated or damaged, "
                    "copy it again, or convert the set again"
                )
            identity = f"{path.absolute()} {found.st_ino} {found.st_mtime_ns} {size_bytes} {sha256}"
            if self._is_noted(identity):
                return
            _check_hash(_sha256(path), sha256, where)
        except OSError as error:
            raise DataError(
                f"{where}: {error.strerror}; copy the file again, or convert the set again"
            ) from None
        self._note(identity)

    def _is_noted(self, identity: str) -> bool:
        try:
            return self._note_of(identity).exists()
        except OSError:
            return False

    def _note(self, identity: str) -> None:
        note = self._note_of(identity)
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
        except OSError:
            logger.info("%s cannot be written: files are verified again by every process", self.directory)

    def _note_of(self, identity: str) -> Path:
        return self.directory / "verified" / hashlib.sha256(identity.encode()).hexdigest()

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """One process of the machine at a time; a lock ends with its holder, however that ends."""
        folder = self.directory / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / key[:2]).open("w") as file:  # few files, though one may wait for another's
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, size_bytes: int) -> None:
        """Remove what was used longest ago; whoever has such a file open keeps it."""
        with self._locked("eviction"):
            folder = self.directory / "files"
            folder.mkdir(parents=True, exist_ok=True)
            files = []
            for path in folder.iterdir():
                try:
                    files.append((path.stat(), path))
                except FileNotFoundError:
                    continue
            excess = sum(found.st_size for found, _ in files) + size_bytes - self.max_bytes
            for found, path in sorted(files, key=lambda item: item[0].st_mtime):
                if excess <= 0:
                    return
                if time.time() - found.st_mtime > JUST_FETCHED_S and _removed(path, found):
                    excess -= found.st_size
        if excess > 0:
            logger.warning(
                "the cache %s is %.1f GiB over its limit with files in use; raise RAYDET_CACHE_GIB",
                self.directory,
                excess / 2**30,
            )


def _download(store: Store, name: str, path: Path, sha256: str, where: str) -> None:
    draft = path.with_suffix(".part")

    def take(chunks: Iterator[bytes]) -> str:
        digest = hashlib.sha256()
        # Its own errors are told from those of the connection, which are tried again.
        with _usable(draft.parent):
            file = draft.open("wb")
        with file:
            for chunk in chunks:
                digest.update(chunk)
                with _usable(draft.parent):
                    file.write(chunk)
            with _usable(draft.parent):  # a name that outlives a loss of power must not lead to half a file
                file.flush()
                os.fsync(file.fileno())
        return digest.hexdigest()

    try:
        _check_hash(store.download(name, take), sha256, where)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _usable(directory: Path) -> Iterator[None]:
    """Turn what the disk of the cache says into an error of data."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot use the cache {directory}: {first_line(error)}; free the disk, or set RAYDET_CACHE_DIR to a "
            "directory on a local disk and RAYDET_CACHE_GIB to its size"
        ) from error


def _touched(path: Path, size_bytes: int) -> bool:
    """Whether it is there and whole; it counts as used now."""
    try:
        os.utime(path)
        return path.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def _removed(path: Path, seen: os.stat_result) -> bool:
    """Remove a file, but not if somebody has touched it since it was seen: who did is about to open it."""
    try:
        if path.stat().st_mtime_ns != seen.st_mtime_ns:
            return False
        path.unlink()
    except FileNotFoundError:
        pass
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(iter(lambda: file.read(CHUNK_BYTES), b""))


def _check_hash(found: str, wanted: str, where: str) -> None:
    if found != wanted:
        raise DataError(
            f"{where}: wanted sha256 {wanted[:12]}..., got {found[:12]}...; the file was altered or is damaged, copy "
            "it again, or convert the set again"
        )
