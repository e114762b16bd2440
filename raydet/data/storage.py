"""Files of a data set in a directory or in object storage, with the same few operations for both.

Endpoint and credentials of object storage come from the environment alone: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION and the rest of Amazon's chain (profiles, roles); GOOGLE_APPLICATION_CREDENTIALS.
A failing operation is retried for RAYDET_STORAGE_PATIENCE_S (120) seconds after its first failure.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pyarrow import fs

from raydet.errors import ConfigError, DataError

Result = TypeVar("Result")

CHUNK_BYTES = 4 * 2**20
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 5, 30

UNFINISHED = "unfinished"
"""Subdirectory for files that are being written; deleting it also removes the drafts of killed processes."""

_ANSWER = re.compile(r"AWS Error (.*)|google::cloud::Status\((.*)")
"""The storage's own message. Names of buckets and keys precede it, and may be any word."""
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN"
    r"|MISSING_AUTHENTICATION_TOKEN|INVALID_TOKEN|HTTP status (401|403)|HTTP response code 403"
    r"|AccessDenied|InvalidAccessKeyId|Forbidden|PERMISSION_DENIED|UNAUTHENTICATED|oauth2|credential",
    re.IGNORECASE,
)
_ABSENT = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|bucket.*(not found|does not exist)", re.IGNORECASE)

logger = logging.getLogger("raydet")


class Store:
    """A directory or bucket prefix that holds files by name; it is pickled as its URI.

    Every method that accesses the storage raises a `DataError` when the storage fails, except `chunks`.

    Args:
        uri: a directory, or file:// (where %20 is a space, as in any URI), s3:// or gs://.
        patience_s: how long a failing operation is retried; None: RAYDET_STORAGE_PATIENCE_S.

    Raises:
        ConfigError: the URI has another scheme, or contains what may be a key.
    """

    def __init__(self, uri: str, *, patience_s: float | None = None) -> None:
        self._own_patience_s = patience_s
        scheme, separator, rest = uri.partition("://")
        self._scheme = scheme if separator else "file"
        if self._scheme == "file":
            if separator and not rest.startswith("/"):
                raise ConfigError(f"{uri}: expected file:///ABSOLUTE/PATH, or a directory without file://")
            # Absolute, because another process may have another working directory.
            self._root = os.path.abspath(unquote(rest) if separator else uri)
            self.uri = f"file://{quote(self._root)}" if separator else self._root
        else:
            self._root = _object_path(scheme, rest)
            self.uri = f"{scheme}://{self._root}"
        self._filesystem: fs.FileSystem | None = None

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return partial(Store, patience_s=self._own_patience_s), (self.uri,)

    @property
    def directory(self) -> Path | None:
        """The directory on this machine; None: in object storage."""
        return Path(self._root) if self._scheme == "file" else None

    def is_same_place(self, other: Store) -> bool:
        """Whether both are the same directory or prefix, also through links."""
        if self.directory is not None and other.directory is not None:
            return self.directory.resolve() == other.directory.resolve()
        return self.uri == other.uri

    def shown(self, name: str) -> str:
        """The full name of a file, for messages."""
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None: there is no such file."""

        def attempt() -> bytes | None:
            try:
                with self._fs().open_input_stream(self._at(name)) as stream:
                    return bytes(stream.read())
            except (FileNotFoundError, NotADirectoryError):
                return None

        return self._retried(f"reading {self.shown(name)}", attempt)

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically; one of the same name is replaced."""

        def attempt() -> None:
            if self.directory is not None:
                write_durably(self.directory / name, content, drafts=self.directory / UNFINISHED)
                return
            with self._fs().open_output_stream(self._at(name)) as stream:
                stream.write(content)

        self._retried(f"writing {self.shown(name)}", attempt)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a large file in pieces, without retries.

        Raises:
            OSError: it cannot be read.
        """
        with self._fs().open_input_stream(self._at(name)) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def download(self, name: str, take: Callable[[Iterator[bytes]], Result]) -> Result:
        """Pass a file's bytes to `take`; it restarts from the beginning when the connection is lost."""
        return self._retried(f"reading {self.shown(name)}", lambda: take(self.chunks(name)))

    def read_hash(self, name: str) -> str | None:
        """The sha256 of a file; None: there is no such file."""
        return None if self.size(name) is None else self.download(name, sha256_of)

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None: there is no such file."""
        info = self._retried(
            f"looking for {self.shown(name)}", lambda: self._fs().get_file_info(self._at(name))
        )
        return int(info.size) if info.type == fs.FileType.File else None

    def sizes(self) -> dict[str, int]:
        """All files below the root by relative path, sorted, with their sizes in bytes."""
        selector = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        found = self._retried(f"listing {self.uri}", lambda: self._fs().get_file_info(selector))
        files = [info for info in found if info.type == fs.FileType.File]
        return dict(
            sorted((info.path.removeprefix(self._root).lstrip("/"), int(info.size)) for info in files)
        )

    def names(self) -> list[str]:
        """The relative paths of all files below the root, sorted."""
        return list(self.sizes())

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""

        def attempt() -> None:
            with suppress(FileNotFoundError):
                self._fs().delete_file(self._at(name))

        self._retried(f"removing {self.shown(name)}", attempt)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _fs(self) -> fs.FileSystem:
        if self._filesystem is None:
            self._filesystem = _filesystem(self._scheme)
        return self._filesystem

    def _retried(self, doing: str, attempt: Callable[[], Result]) -> Result:
        patience_s = _patience_s() if self._own_patience_s is None else self._own_patience_s
        wait_s = FIRST_WAIT_S
        failed_at: float | None = None
        while True:
            try:
                result = attempt()
                break
            except OSError as error:
                now = time.monotonic()
                failed_at = now if failed_at is None else failed_at
                waited_s, reason = now - failed_at, first_line(error)
                if self.directory is not None or isinstance(error, FileNotFoundError):
                    raise DataError(f"{doing} failed: {reason}; check the path") from error
                refusal = _refusal(doing, reason)
                if refusal is not None:
                    raise refusal from None
                if waited_s >= patience_s:
                    raise DataError(
                        f"{doing} failed for {waited_s:.0f} s: {reason}; check that the storage is reachable "
                        "(AWS_ENDPOINT_URL), and run the command again"
                    ) from None
                logger.warning("%s failed (%s); trying again in %.1f s", doing, reason, wait_s)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        if failed_at is not None:
            logger.warning("%s: done, after %.1f s", doing, time.monotonic() - failed_at)
        return result


def write_durably(path: Path, content: bytes, *, drafts: Path) -> None:
    """Write a file such that readers, also after a power loss, see the old content or the new, never a part.

    Args:
        drafts: directory for the unfinished file, on the same file system.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drafts.mkdir(parents=True, exist_ok=True)
    draft = drafts / f"{path.name}.{uuid.uuid4().hex}"  # unique among processes on all machines
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def sha256_of(chunks: Iterable[bytes]) -> str:
    """The sha256 of a file that is read in pieces."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _object_path(scheme: str, rest: str) -> str:
    """BUCKET/PATH. Error messages never quote it: it may contain a key."""
    path = rest.rstrip("/")
    if scheme not in ("s3", "gs") or not path or path.startswith("/"):
        expected = "a directory, file://PATH, s3://BUCKET/PATH or gs://BUCKET/PATH"
    elif "@" in path or ":" in path:
        expected = (
            "a URI without keys, got '@' or ':' in it; set keys in the environment (AWS_ACCESS_KEY_ID, ...)"
        )
    elif "?" in path or "#" in path:
        expected = "a URI without '?' and '#'; set options in the environment (AWS_REGION, ...)"
    else:
        return path
    raise ConfigError(f"{scheme}://...: expected {expected}")


def _patience_s() -> float:
    text = os.environ.get("RAYDET_STORAGE_PATIENCE_S", "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ConfigError(f"RAYDET_STORAGE_PATIENCE_S must be a number of seconds, got {text!r}")
    return seconds


def _refusal(doing: str, reason: str) -> DataError | None:
    """The error for an answer that retrying will not change; None: it may change."""
    found = _ANSWER.search(reason)
    answer = found.group(found.lastindex or 0) if found else ""
    if _REFUSED.search(answer):
        return DataError(
            f"{doing} was refused: {reason}; check the credentials in the environment and their rights"
        )
    if _ABSENT.search(answer):
        return DataError(f"{doing} failed: {reason}; create the bucket, or correct the URI")
    return None


def _filesystem(scheme: str) -> fs.FileSystem:
    if scheme == "file":
        return fs.LocalFileSystem()
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_TIMEOUT_S))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    return fs.S3FileSystem(
        endpoint_override=parts.netloc or None,
        scheme=parts.scheme,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(
            max_attempts=2
        ),  # `_retried` retries longer, and logs it
    )
