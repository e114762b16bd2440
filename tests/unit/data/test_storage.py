"""Places of files: what they are called, and when a failure is final."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raydet.data import storage
from raydet.data.storage import Store
from raydet.errors import ConfigError, DataError

CONTENT = b"what lies there"


class S3(ThreadingHTTPServer):
    """Holds one content under every name, and answers the first requests with an error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.status, self.failures, self.requests = 503, 0, 0


class Answer(BaseHTTPRequestHandler):
    """To HEAD and GET."""

    def do_HEAD(self) -> None:
        """Without the content."""
        self._answer(b"")

    def do_GET(self) -> None:
        """With it."""
        self._answer(CONTENT)

    def _answer(self, body: bytes) -> None:
        assert isinstance(self.server, S3)
        self.server.requests += 1
        if self.server.requests <= self.server.failures:
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """In this process."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.01)
    server = S3()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_is_busy_is_asked_again(
    status: int, server: S3, caplog: pytest.LogCaptureFixture
) -> None:
    server.status, server.failures = status, 5  # more than the client's own attempts
    assert Store("s3://bucket/signatures").read("manifest.json") == CONTENT
    assert "trying again" in caplog.text
    assert "done, after" in caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_not_tried_again(status: int, server: S3) -> None:
    server.status, server.failures = status, 1000
    with pytest.raises(DataError, match=r"was refused.*check the credentials"):
        Store("s3://bucket/set").read("manifest.json")
    assert server.requests <= 2


def test_patience_begins_with_the_first_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0

    def lost_after_an_hour(chunks: Iterator[bytes]) -> str:
        nonlocal now
        now += 3600
        if now == 3600:
            raise OSError("AWS Error NETWORK_CONNECTION: curlCode: 56")
        return "content"

    monkeypatch.setattr(storage.time, "monotonic", lambda: now)
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    monkeypatch.setattr(Store, "chunks", lambda *_: iter(()))
    assert Store("s3://bucket/set").download("a", lost_after_an_hour) == "content"
    assert "trying again" in caplog.text


@pytest.mark.parametrize(
    ("message", "is_final"),
    [
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", False),
        ("AWS Error UNKNOWN (HTTP status 500) during HeadObject operation: No response body.", False),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28", False),
        ("AWS Error SLOW_DOWN during PutObject operation: Reduce your request rate.", False),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", True),
        ("AWS Error UNKNOWN (HTTP status 401) during HeadObject operation: No response body.", True),
        ("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation: No response body.", True),
        ("AWS Error INVALID_ACCESS_KEY_ID during GetObject operation: no such key", True),
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during GetObject operation: The request signature ...", True),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: The bucket does not exist", True),
        ("google::cloud::Status(UNAVAILABLE: try again)", False),
        ("google::cloud::Status(PERMISSION_DENIED: no)", True),
    ],
)
@pytest.mark.parametrize("key", ["images", "signatures/credential/NoSuchBucket"])
def test_only_the_answer_of_the_storage_decides(message: str, is_final: bool, key: str) -> None:
    reason = f"When reading information for key '{key}/a' in bucket 'forbidden': {message}"
    assert (storage._refusal("reading", reason) is not None) == is_final


@pytest.mark.parametrize("text", ["2m", "nan", "-1", ""])
def test_patience_that_is_no_number(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYDET_STORAGE_PATIENCE_S", text)
    with pytest.raises(
        ConfigError, match=f"RAYDET_STORAGE_PATIENCE_S must be a number of seconds, got '{text}'"
    ):
        Store(str(tmp_path)).read("a")


def test_google_leaves_the_patience_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(storage.fs, "GcsFileSystem", lambda **settings: given.update(settings))
    storage._filesystem("gs")
    assert given["retry_time_limit"].total_seconds() == storage.REQUEST_TIMEOUT_S


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://host/x", "expected a directory, file://PATH"),
        ("http://KEY:SECRET@host/x", "expected a directory, file://PATH"),
        ("s3:///x", "expected a directory, file://PATH"),
        ("s3://", "expected a directory, file://PATH"),
        ("s3://KEY:SECRET@bucket/x", "expected a URI without keys"),
        ("s3://KEY:SEC/RET@bucket/x", "expected a URI without keys"),
        ("s3://KEY:SEC/RET", "expected a URI without keys"),
        ("gs://bucket/SEC@RET", "expected a URI without keys"),
        ("s3://bucket/x?secret_key=SECRET", r"without '\?' and '#'"),
        ("s3://bucket/x#SECRET", r"without '\?' and '#'"),
        ("file://relative/x", "expected file:///ABSOLUTE/PATH"),
    ],
)
def test_places_that_are_none(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Store(uri)
    assert "SEC" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_place_stays_where_it_was(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(f"{scheme}{tmp_path}/set/" if scheme else "set/")
    store.write("a", CONTENT)
    monkeypatch.chdir("/")
    for one in (store, pickle.loads(pickle.dumps(store))):
        assert one.read("a") == CONTENT
        assert one.directory == tmp_path / "set"
        assert one.sizes() == {"a": len(CONTENT)}


def test_drafts_lie_where_they_are_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", killed)
    store = Store(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        store.write("shard-000000.arrow", CONTENT)
    [draft] = store.names()
    assert draft.startswith("unfinished/shard-000000.arrow.")
