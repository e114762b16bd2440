"""A study with planted secrets, all of them in use: none appears in a file or in the output.

The data set is read from an S3 server with keys from the environment, the tracking server gets a password, Ray requires
a token. While the study runs, no process listens beyond the loopback interface.
"""

from __future__ import annotations

import base64
import importlib.util
import ipaddress
import json
import os
import secrets
import shutil
import string
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from tests.numerics.test_object_storage import URI, Server
from tests.study.conftest import SPACES, TINY, environment
from tests.study.mlflow_server import MlflowServer

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("moto") is None, reason="the S3 server, moto[server], is not installed"
    ),
]

USER = "somebody"
SIZE = {path: value for path, value in TINY.items() if path.startswith("data.source")}


def planted() -> dict[str, str]:
    """Environment variables with secrets in the programs' formats."""
    letters = string.ascii_uppercase + string.digits
    return {
        "AWS_ACCESS_KEY_ID": "AKIA" + "".join(secrets.choice(letters) for _ in range(16)),
        "AWS_SECRET_ACCESS_KEY": base64.b64encode(secrets.token_bytes(30)).decode(),
        "AWS_SESSION_TOKEN": base64.b64encode(secrets.token_bytes(90)).decode(),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "MLFLOW_TRACKING_PASSWORD": secrets.token_urlsafe(12),
        "PGPASSWORD": secrets.token_urlsafe(12),
    }


@dataclass
class Left:
    """Files and output of the commands."""

    directory: Path
    study: Path
    ray: Path
    hidden: dict[str, str]
    outputs: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    listening: set[tuple[str, str]] = field(default_factory=set)
    """Process and address of every listening socket."""

    def run(self, name: str, arguments: list[str], env: Mapping[str, str]) -> None:
        """Run a command, and record the sockets of its processes."""
        process = subprocess.Popen(
            [sys.executable, "-m", "raydet", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(process.pid, ended))
        watcher.start()
        self.outputs[name], _ = process.communicate(timeout=1500)
        ended.set()
        watcher.join()
        self.codes[name] = process.returncode

    def _watch(self, pid: int, ended: threading.Event) -> None:
        while not ended.wait(1.0):
            try:
                driver = psutil.Process(pid)
                processes = [driver, *driver.children(recursive=True)]
            except psutil.Error:
                return
            for process in processes:
                try:
                    found = process.net_connections(kind="inet")
                    self.listening |= {
                        (process.name(), connection.laddr.ip)
                        for connection in found
                        if connection.status == psutil.CONN_LISTEN
                    }
                except psutil.Error:
                    continue


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    directory = tmp_path_factory.mktemp("left")
    ray = Path(tempfile.mkdtemp(prefix="raydet-"))  # paths of Unix sockets must be short
    left = Left(directory, directory / "runs" / "gaff", ray, planted())
    for name in ("objects", "mlflow"):
        (directory / name).mkdir()
    storage = Server(directory / "objects")
    tracker = MlflowServer(directory / "mlflow", f"sqlite:///{directory}/mlflow/mlflow.db")
    env = {key: value for key, value in environment().items() if not key.startswith(("AWS_", "MLFLOW_"))}
    env |= left.hidden | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{storage.port}",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_USERNAME": USER,
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(ray),
        "RAYDET_CACHE_DIR": str(directory / "cache"),
    }
    try:
        tracker.start()
        for name, arguments in commands(left, tracker.uri).items():
            left.run(name, arguments, env)
        yield left
    finally:
        tracker.kill()
        storage.kill()
        shutil.rmtree(ray, ignore_errors=True)


def commands(left: Left, tracking_uri: str) -> dict[str, list[str]]:
    """Commands by name: a study, and commands that are refused."""
    space = str(SPACES / "two_stages.py")
    password = left.hidden["MLFLOW_TRACKING_PASSWORD"]
    in_uri = tracking_uri.replace("://", f"://{USER}:{password}@")
    signed = f"shards:{URI}?X-Amz-Credential={left.hidden['AWS_ACCESS_KEY_ID']}&X-Amz-Signature={password}"
    tune = ["tune", "--space", space, "--recipe", "demo", "--storage", str(left.directory / "runs")]
    tune += ["--workers", "2", *sets({path: value for path, value in TINY.items() if path not in SIZE})]
    return {
        "convert": ["data", "convert", "synthetic", URI, *sets(SIZE)],
        "password in a URI": [*tune, "--data", f"shards:{URI}", "--tracking-uri", in_uri],
        "signed URL": [*tune, "--data", signed, "--tracking-uri", tracking_uri],
        "signed URL by --set": [*tune, "--set", f"data.source.path={signed}", "--tracking-uri", tracking_uri],
        "dead tracker": [*tune, "--data", f"shards:{URI}", "--tracking-uri", "http://127.0.0.1:9"],
        "study": [*tune, "--data", f"shards:{URI}", "--tracking-uri", tracking_uri],
    }


def sets(values: Mapping[str, object]) -> list[str]:
    return [part for path, value in values.items() for part in ("--set", f"{path}={json.dumps(value)}")]


def forms(left: Left) -> dict[str, bytes]:
    """Every secret in all encodings in which it may appear, by description."""
    found = {}
    for name, value in left.hidden.items():
        found |= {name: value.encode(), f"{name}, quoted": quote(value, safe="").encode()}
        pair = base64.b64encode(f"{USER}:{value}".encode())
        found |= {f"{name}, encoded": base64.b64encode(value.encode()), f"{name}, as a header": pair}
    return found


def test_the_study_has_run(left: Left) -> None:
    assert left.codes["convert"] == 0, left.outputs["convert"]
    assert left.codes["study"] == 0, left.outputs["study"]
    assert (left.study / "report" / "report.html").exists()
    assert f"shards:{URI}".removeprefix("shards:") in (left.study / "journal.jsonl").read_text()


def test_secrets_in_command_lines_are_refused(left: Left) -> None:
    for name in ("password in a URI", "signed URL", "signed URL by --set", "dead tracker"):
        assert left.codes[name] == 2, left.outputs[name]
        assert left.outputs[name].count("\n") == 1
    assert "MLFLOW_TRACKING_PASSWORD" in left.outputs["password in a URI"]
    assert "AWS_SECRET_ACCESS_KEY" in left.outputs["signed URL"]


def test_no_file_or_output_contains_a_secret(left: Left) -> None:
    hidden = forms(left)
    files = [path for root in (left.directory, left.ray) for path in root.rglob("*") if path.is_file()]
    leaks = []
    for path in files:
        content = path.read_bytes()
        leaks += [f"{path}: {name}" for name, form in hidden.items() if form in content]
    leaks += [
        f"output of {name}: {secret}"
        for name, output in left.outputs.items()
        for secret, form in hidden.items()
        if form in output.encode()
    ]
    assert leaks == []
    # The scan covers the files of Ray, MLflow and the study.
    seen = b"".join(path.read_bytes() for path in files if path.suffix in (".log", ".out", ".err", ".db"))
    for word in (b"raylet", b"mlflow.parentRunId", b"exp_001", os.fsencode(left.study)):
        assert word in seen
    assert len([path for path in files if left.ray in path.parents and "logs" in path.parts]) > 10


def test_nothing_listens_beyond_the_loopback(left: Left) -> None:
    beyond = {
        (name, address)
        for name, address in left.listening
        if not ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    }
    assert beyond == set()
    assert {"raylet", "gcs_server"} <= {name for name, _ in left.listening}
