"""Shard files on this machine: those from object storage are in a bounded cache that all processes of a node share.

A file is fetched and verified by its sha256 once per node; the least recently used files are evicted first. Files are
named by their hash, so that two sets never mix. A file of a local set stays where it is; the cache records that its
hash was verified, which is valid until its size or modification time changes.

RAYDET_CACHE_DIR (~/.cache/raydet) sets the directory, RAYDET_CACHE_GIB (50) the size; a cache smaller than the set is
slow, because images are read in random order.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from raydet.data.storage import CHUNK_BYTES, Store, first_line, sha256_of
from raydet.errors import ConfigError, DataError

JUST_FETCHED_S = 60.0
"""Files younger than this are not evicted: the process that fetched them is about to open them."""

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class ShardCache:
    """A directory of files named by their hash."""

    directory: Path
    max_bytes: int

    @classmethod
    def of_machine(cls) -> Self:
        """The cache given by the environment.

        Raises:
            ConfigError: RAYDET_CACHE_GIB is not a number.
        """
        default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "raydet"
        directory = Path(os.environ.get("RAYDET_CACHE_DIR", default)).expanduser()
        size = os.environ.get("RAYDET_CACHE_GIB", "50")
        try:
            return cls(directory, int(float(size) * 2**30))
        except (ValueError, OverflowError):
            raise ConfigError(f"RAYDET_CACHE_GIB must be a number of GiB, got {size!r}") from None

    def fetched(self, store: Store, name: str, sha256: str, size_bytes: int) -> Path:
        """The path of a file on this machine, complete and verified.

        Raises:
            DataError: the file cannot be fetched, or differs from the manifest.
        """
        where = store.shown(name)
        if store.directory is not None:
            self._verify_in_place(store.directory / name, sha256, size_bytes, where)
            return store.directory / name
        path = self.directory / "files" / f"{sha256}.arrow"
        with _usable(self.directory):
            if not _touched(path, size_bytes):
                with self._locked(sha256):
                    if not _touched(path, size_bytes):  # otherwise another process was faster
                        self._evict(size_bytes)
                        _download(store, name, path, sha256, where)
        return path

    def _verify_in_place(self, path: Path, sha256: str, size_bytes: int, where: str) -> None:
        try:
            found = path.stat()
            if found.st_size != size_bytes:
                raise DataError(
                    f"{where}: expected {size_bytes} bytes, the file has {found.st_size}; it is truncated or damaged, "
                    "copy it again, or convert the set again"
                )
            identity = f"{path.absolute()} {found.st_ino} {found.st_mtime_ns} {size_bytes} {sha256}"
            marker = self.directory / "verified" / hashlib.sha256(identity.encode()).hexdigest()
            with suppress(OSError):
                if marker.exists():
                    return
            with path.open("rb") as file:
                _check_hash(sha256_of(iter(lambda: file.read(CHUNK_BYTES), b"")), sha256, where)
        except OSError as error:
            raise DataError(
                f"{where}: {error.strerror}; copy the file again, or convert the set again"
            ) from None
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        except OSError:
            logger.info("%s is not writable: every process verifies files again", self.directory)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Exclude the other processes of the machine; the lock is released when its holder exits or is killed."""
        folder = self.directory / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / key[:2]).open("w") as file:  # few lock files, so that different keys may share one
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _evict(self, size_bytes: int) -> None:
        """Delete the least recently used files to make room; processes that have them open can still read them."""
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
        # Errors of the disk are distinguished from those of the connection, which are retried.
        with _usable(draft.parent):
            file = draft.open("wb")
        with file:
            for chunk in chunks:
                digest.update(chunk)
                with _usable(draft.parent):
                    file.write(chunk)
            with _usable(draft.parent):  # after a power loss, a file name must not refer to partial content
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
    """Convert an `OSError` of the cache's disk to a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot use the cache {directory}: {first_line(error)}; free the disk, or set RAYDET_CACHE_DIR to a "
            "directory on a local disk and RAYDET_CACHE_GIB to its size"
        ) from error


def _touched(path: Path, size_bytes: int) -> bool:
    """Mark a file as just used; False if it is missing or incomplete."""
    try:
        os.utime(path)
        return path.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def _removed(path: Path, seen: os.stat_result) -> bool:
    """Delete a file, unless another process has touched it since `seen`: it is about to open the file."""
    try:
        if path.stat().st_mtime_ns != seen.st_mtime_ns:
            return False
        path.unlink()
    except FileNotFoundError:
        pass
    return True


def _check_hash(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise DataError(
            f"{where}: expected sha256 {expected[:12]}..., got {found[:12]}...; the file was altered or is damaged, "
            "copy it again, or convert the set again"
        )
