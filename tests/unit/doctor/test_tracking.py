"""The findings on MLflow servers: servers of the standard library that answer as MLflow does."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raydet.doctor.tracking import check_tracking, judge_server
from raydet.errors import TrackingError
from raydet.track.server import Server, ask_server, check_reachable

FAR = "https://mlflow.example.org"
EXPECTED = "Basic " + base64.b64encode(b"me:right").decode()


class BasicAuth(BaseHTTPRequestHandler):
    """Lets in `me` with the password `right`."""

    def do_GET(self) -> None:
        is_ours = self.headers.get("Authorization") == EXPECTED
        self.send_response(200 if is_ours or self.path == "/health" else 401)
        self.end_headers()
        if is_ours:
            self.wfile.write(b"3.17.2" if self.path == "/version" else b'{"experiments": []}')

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), BasicAuth)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_passwords(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri = f"http://{server}"
    lets_in = Server(version="3.17.2", is_open=False, refusal=None, said='{"experiments": []}')
    assert ask_server(uri).refusal == 401
    assert ask_server(f"http://me:right@{server}") == lets_in
    (tmp_path / ".mlflow").mkdir()
    kept = "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = right\n"
    (tmp_path / ".mlflow" / "credentials").write_text(kept)
    assert ask_server(uri) == lets_in
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong%word")
    (finding,) = check_tracking(uri)
    assert finding.level == "failure"
    assert "MLFLOW_TRACKING_PASSWORD" in finding.remedy
    assert "wrong" not in finding.as_line()
    check_reachable(uri)  # it answers; whom it lets in is another question


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:1", "postgresql://me:secret@127.0.0.1:1/runs"])
def test_no_server_answers(uri: str) -> None:
    with pytest.raises(
        TrackingError, match=r"///?\*\*\*@127.0.0.1:1.*nothing answers \(Connection refused\)"
    ):
        check_reachable(uri)
    (finding,) = check_tracking(uri)
    assert finding.level == "failure"
    assert "secret" not in finding.as_line()


@pytest.mark.parametrize(
    ("uri", "server", "levels"),
    [
        (FAR, Server("3.17.2", False, None, ""), ["ok"]),
        (FAR, Server("3.10.1", False, None, ""), ["failure"]),
        ("http://localhost:5000", Server("3.10.1", True, None, ""), ["warning"]),
        ("http://localhost:5000", Server("3.17.2", True, None, ""), ["ok"]),
        (FAR, Server("3.17.2", True, None, ""), ["warning"]),
        ("http://mlflow:5000", Server("3.17.2", False, None, ""), ["warning"]),  # no TLS
        (FAR, Server(None, False, 403, "Invalid Host header - possible DNS rebinding"), ["failure"]),
        (FAR, Server(None, False, 404, "not found"), ["failure"]),
        (FAR, Server(None, False, None, ""), ["warning"]),
    ],
)
def test_servers(uri: str, server: Server, levels: list[str]) -> None:
    assert [finding.level for finding in judge_server(uri, server)] == levels


def test_no_server_is_set() -> None:
    assert [finding.level for finding in check_tracking(None) + check_tracking("none")] == ["ok", "ok"]
    assert [finding.level for finding in check_tracking("sqlite:////tmp/runs.db")] == ["ok"]
