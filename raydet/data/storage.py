"""Files of a set, in a directory or in object storage: the same few operations everywhere.

Where object storage is and how to sign in comes from the environment alone: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION and the rest of Amazon's chain (profiles, roles); GOOGLE_APPLICATION_CREDENTIALS.
What fails for a while is tried again for RAYDET_STORAGE_PATIENCE_S (120) seconds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pyarrow import fs

from raydet.errors import ConfigError, DataError

Result = TypeVar("Result")

CHUNK_BYTES = 4 * 2**20
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 5, 30

_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN"
    r"|MISSING_AUTHENTICATION_TOKEN|INVALID_TOKEN|No response body|HTTP status (401|403)|HTTP response code 403"
    r"|AccessDenied|InvalidAccessKeyId|Forbidden|PERMISSION_DENIED|UNAUTHENTICATED|oauth2|credential",
    re.IGNORECASE,
)
_ABSENT = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|bucket.*(not found|does not exist)", re.IGNORECASE)

logger = logging.getLogger("raydet")


class Store:
    """A place that holds files by name. Travels between processes as its URI.

    Args:
        uri: a directory, or file://, s3:// or gs://.

    Raises:
        ConfigError: the URI is of another kind, or holds a password.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"
        parts = urlsplit(self.uri)
        self._scheme = parts.scheme if "://" in self.uri else "file"
        if "@" in parts.netloc:
            raise ConfigError(
                f"{self._scheme}://...@...: wanted a URI without keys; give them in the environment "
                "(AWS_ACCESS_KEY_ID, ...)"
            )
        if self._scheme not in ("file", "s3", "gs") or (self._scheme != "file" and not parts.netloc):
            raise ConfigError(f"{uri}: wanted a directory, file://PATH, s3://BUCKET/PATH or gs://BUCKET/PATH")
        is_path = "://" not in self.uri
        self._root = os.path.abspath(self.uri) if is_path else parts.netloc + parts.path
        self._filesystem: fs.FileSystem | None = None

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.uri,)

    @property
    def directory(self) -> Path | None:
        """Where it lies on this machine; None: in object storage."""
        return Path(self._root) if self._scheme == "file" else None

    def shown(self, name: str) -> str:
        """A file, for messages."""
        return f"{self.uri}/{name}"

    def read(self, name: str) -> bytes | None:
        """A small file; None: it is not there.

        Raises:
            DataError: it cannot be read.
        """

        def attempt() -> bytes | None:
            try:
                with self._fs().open_input_stream(self._at(name)) as stream:
                    return bytes(stream.read())
            except (FileNotFoundError, NotADirectoryError):
                return None

        return self._patiently(f"reading {self.shown(name)}", attempt)

    def write(self, name: str, content: bytes) -> None:
        """Put a file, whole or not at all; another of the name is replaced.

        Raises:
            DataError: it cannot be written.
        """

        def attempt() -> None:
            if self.directory is not None:
                write_durably(self.directory / name, content)
                return
            with self._fs().open_output_stream(self._at(name)) as stream:
                stream.write(content)

        self._patiently(f"writing {self.shown(name)}", attempt)

    def chunks(self, name: str) -> Iterator[bytes]:
        """A large file, from its beginning; one try.

        Raises:
            OSError: it cannot be read.
        """
        with self._fs().open_input_stream(self._at(name)) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def download(self, name: str, take: Callable[[Iterator[bytes]], Result]) -> Result:
        """Hand a file's bytes to `take`, from the beginning again where the connection is lost.

        Raises:
            DataError: it cannot be read.
        """
        return self._patiently(f"reading {self.shown(name)}", lambda: take(self.chunks(name)))

    def read_hash(self, name: str) -> str | None:
        """The sha256 of a file; None: it is not there.

        Raises:
            DataError: it cannot be read.
        """
        if self.size(name) is None:
            return None
        return self.download(name, _sha256)

    def size(self, name: str) -> int | None:
        """In bytes; None: there is no such file.

        Raises:
            DataError: the place does not answer.
        """
        info = self._patiently(
            f"looking for {self.shown(name)}", lambda: self._fs().get_file_info(self._at(name))
        )
        return int(info.size) if info.type == fs.FileType.File else None

    def names(self) -> list[str]:
        """All files, with their directories below this place.

        Raises:
            DataError: the place does not answer.
        """
        selector = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        found = self._patiently(f"listing {self.uri}", lambda: self._fs().get_file_info(selector))
        return sorted(
            info.path.removeprefix(self._root).lstrip("/") for info in found if info.type == fs.FileType.File
        )

    def delete(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            DataError: it cannot be removed.
        """

        def attempt() -> None:
            try:
                self._fs().delete_file(self._at(name))
            except FileNotFoundError:
                return

        self._patiently(f"removing {self.shown(name)}", attempt)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _fs(self) -> fs.FileSystem:
        if self._filesystem is None:
            self._filesystem = _filesystem(self._scheme)
        return self._filesystem

    def _patiently(self, doing: str, attempt: Callable[[], Result]) -> Result:
        started, wait_s = time.monotonic(), FIRST_WAIT_S
        patience_s = float(os.environ.get("RAYDET_STORAGE_PATIENCE_S", "120"))
        while True:
            try:
                result = attempt()
                break
            except OSError as error:
                reason = _first_line(error)
                if self.directory is not None or isinstance(error, FileNotFoundError):
                    raise DataError(f"{doing} failed: {reason}; check the path") from error
                if _REFUSED.search(reason):
                    raise DataError(
                        f"{doing} was refused: {reason}; check the credentials in the environment and their rights"
                    ) from None
                if _ABSENT.search(reason):
                    raise DataError(
                        f"{doing} failed: {reason}; make the bucket, or correct the URI"
                    ) from None
                waited_s = time.monotonic() - started
                if waited_s >= patience_s:
                    raise DataError(
                        f"{doing} failed for {waited_s:.0f} s: {reason}; check that the storage can be reached "
                        "(AWS_ENDPOINT_URL), and give the command again"
                    ) from None
                logger.warning("%s failed (%s); trying again in %.1f s", doing, reason, wait_s)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        if wait_s > FIRST_WAIT_S:
            logger.warning("%s: done, after %.1f s", doing, time.monotonic() - started)
        return result


def write_durably(path: Path, content: bytes) -> None:
    """Readers, and a machine that loses power, see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _sha256(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _filesystem(scheme: str) -> fs.FileSystem:
    if scheme == "file":
        return fs.LocalFileSystem()
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=None)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    return fs.S3FileSystem(
        endpoint_override=parts.netloc or None,
        scheme=parts.scheme,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),  # ours is the patient one, and it tells
    )


def _first_line(error: OSError) -> str:
    text = error.strerror or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
