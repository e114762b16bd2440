"""What cannot be reached is said in one line, within half a minute, with exit code 2; what can is examined."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from raydet.doctor.nodes import ThisMachine
from raydet.doctor.storage import check_storage
from tests.numerics.test_object_storage import Server
from tests.study.conftest import environment, tune_arguments

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TOKEN, OTHER_TOKEN = "a" * 40, "b" * 40
COMMANDS = ("train", "tune", "doctor")


def command_line(command: str, storage: str, tracking_uri: str) -> list[str]:
    line = [sys.executable, "-m", "raydet"]
    match command:
        case "train":
            line += ["train", "--recipe", "demo", "--run-dir", f"{storage}/run"]
        case "tune":
            line[2] = "raydet.tune"
            line += [*tune_arguments("gaff_phase1"), "--storage", storage]
        case "doctor":
            line += ["doctor", "--storage", storage]
    return [*line, "--tracking-uri", tracking_uri]


def refused(
    command: str,
    directory: Path,
    extra: Mapping[str, str],
    *,
    tracking_uri: str = "none",
    storage: str | None = None,
) -> str:
    """The one line with which a command refuses."""
    done = subprocess.run(
        command_line(command, storage or str(directory), tracking_uri),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment() | {"HOME": str(directory)} | extra,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    if command == "doctor":
        lines = [line for line in done.stdout.splitlines() if line.startswith("failure")]
    else:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stdout + done.stderr
    return lines[0]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Head:
    """A Ray head on the loopback that wants a token."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={self.port}"]
        command += ["--include-dashboard=false", "--num-cpus=1", "--object-store-memory=100000000"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        self.process = subprocess.Popen(
            command,
            env=environment() | {"HOME": str(home)} | self.environment(TOKEN),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def environment(self, token: str | None) -> dict[str, str]:
        """Of a command that brings a token, or none."""
        settings = {
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            # Else Ray takes the machine's address for 127.0.0.1.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        return settings | ({} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token})

    def control_store(self) -> int:
        """The process id of the head's gcs_server."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return next(process.pid for process in below if process.name() == "gcs_server")

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the head has ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    head = Head(tmp_path_factory.mktemp("home"))
    yield head
    head.end()


class Refusing(BaseHTTPRequestHandler):
    """What MLflow's basic-auth app answers to a wrong password."""

    def do_GET(self) -> None:
        is_open = self.path == "/health"
        self.send_response(200 if is_open else 401)
        self.send_header("WWW-Authenticate", 'Basic realm="mlflow"')
        self.end_headers()
        self.wfile.write(b"OK" if is_open else b"You are not authenticated. Please see the documentation.")

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def refusing_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_head(command: str, tmp_path: Path) -> None:
    line = refused(command, tmp_path, {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert "nothing answers (Connection refused); is the head up, and RAY_ADDRESS right?" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_another_server_at_the_address(command: str, tmp_path: Path, refusing_server: str) -> None:
    settings = {
        "RAY_ADDRESS": refusing_server.removeprefix("http://"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    line = refused(command, tmp_path, settings)
    assert "cannot join the Ray cluster at 127.0.0.1:" in line
    assert "RAY_ADDRESS" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_name(command: str, tmp_path: Path) -> None:
    line = refused(command, tmp_path, {"RAY_ADDRESS": "head.invalid:6379"})
    assert "cannot join the Ray cluster at head.invalid:6379" in line


def test_a_head_that_stands_still(tmp_path: Path) -> None:
    head = Head(tmp_path / "home")
    os.kill(head.control_store(), signal.SIGSTOP)
    try:
        line = refused("train", tmp_path, head.environment(TOKEN))
    finally:
        os.kill(head.control_store(), signal.SIGCONT)
        head.end()
    assert "no answer within 5 s; is the head alive, and RAY_ADDRESS right?" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_replaced_token(command: str, tmp_path: Path, head: Head) -> None:
    line = refused(command, tmp_path, head.environment(OTHER_TOKEN))
    assert "it rejects the token" in line
    assert OTHER_TOKEN not in line


@pytest.mark.parametrize("command", COMMANDS)
def test_no_token(command: str, tmp_path: Path, head: Head) -> None:
    line = refused(command, tmp_path, head.environment(None))
    assert "it requires a token; set RAY_AUTH_MODE=token" in line
    line = refused(command, tmp_path, head.environment(None) | {"RAY_AUTH_MODE": "token"})
    assert "RAY_AUTH_MODE=token, but there is no token" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_password(command: str, tmp_path: Path, refusing_server: str) -> None:
    secret = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "planted-password"}
    line = refused(command, tmp_path, secret, tracking_uri=refusing_server)
    assert "MLFLOW_TRACKING_PASSWORD" in line
    assert "planted" not in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_that_never_answers(command: str, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        secret = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "planted-password"}
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        line = refused(command, tmp_path, secret, tracking_uri=uri)
    assert "nothing answers (timed out)" in line
    assert "planted" not in line


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Those that an S3 client wants."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_a_bucket(keys: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(tmp_path)
    keys.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    (good,) = check_storage("s3://images/studies", ThisMachine())
    (absent,) = check_storage("s3://no-such-bucket/studies", ThisMachine())
    server.kill()
    (dead,) = check_storage("s3://images/studies", ThisMachine())
    assert good.level == "ok"
    assert absent.level == dead.level == "failure"
    assert "create the bucket" in absent.text
    assert "check that the storage is reachable" in dead.text


def test_a_bucket_that_may_not_be_written(keys: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="0")  # nobody has rights
    keys.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    try:
        line = refused("doctor", tmp_path, {}, storage="s3://images/studies")
    finally:
        server.kill()
    assert "check the credentials in the environment and their rights" in line
    assert "planted" not in line


@pytest.mark.parametrize("command", ["train", "tune"])
def test_what_is_no_directory(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused(command, tmp_path, {}, storage=str(tmp_path / "file" / "runs"))
    assert "cannot write" in line
    assert "choose another" in line
    line = refused(command, tmp_path, {}, storage="s3://bucket/runs")
    assert "must be a directory, got s3://bucket/runs" in line


def test_a_cluster(head: Head, tmp_path: Path) -> None:
    done = subprocess.run(
        [*command_line("doctor", str(tmp_path / "runs"), "none"), "--json"],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment() | {"HOME": str(tmp_path)} | head.environment(TOKEN),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["ok"]
    by_check = {finding["check"]: finding for finding in said["findings"]}
    assert {"ray", "token", "versions", "gpus", "shared memory", "disk", "clock", "storage"} <= set(by_check)
    assert "1 nodes, 1 CPUs, 0 GPUs" in by_check["ray"]["text"]
    assert by_check["token"]["level"] == "ok"
    assert not (tmp_path / "runs").exists()
