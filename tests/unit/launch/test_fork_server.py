"""Forked workers: warm if the server answers, plain if it does not, dead when their client is."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydet.launch.fork_server import CLIENT, warm_workers

REPORT = """
import json, os, random, sys
import numpy as np
print(json.dumps({
    "is_warm": "torch" in sys.modules, "argv": sys.argv[1:], "cwd": os.getcwd(), "env": os.environ.get("RAYDET_TEST"),
    "draws": [random.random(), float(np.random.random())],
}))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def command() -> Iterator[list[str]]:
    with warm_workers() as py_executable:
        parts = shlex.split(py_executable)
        deadline = time.monotonic() + 60
        while not Path(parts[-1]).exists():
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)
        yield parts


def report(command: list[str], tmp_path: Path) -> tuple[int, dict[str, object]]:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    done = subprocess.run(
        [*command, str(script), "one", "two words"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "RAYDET_TEST": "yes"},
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout)


def test_a_worker_is_the_program_it_was_asked_to_be(command: list[str], tmp_path: Path) -> None:
    _, first = report(command, tmp_path)
    _, second = report(command, tmp_path)
    assert first["is_warm"]
    assert first["argv"] == ["one", "two words"]
    assert (first["cwd"], first["env"]) == (str(tmp_path), "yes")
    assert not set(first["draws"]) & set(second["draws"])  # type: ignore[call-overload]


def test_a_client_that_dies_early_does_no_harm(command: list[str], tmp_path: Path) -> None:
    for message in (b"", b"not json\n", b'{"env": '):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(command[-1])
            client.sendall(message)
    _, found = report(command, tmp_path)
    assert found["is_warm"]


def test_without_a_server_the_worker_starts_plainly(tmp_path: Path) -> None:
    code, found = report([sys.executable, "-I", "-S", str(CLIENT), str(tmp_path / "no-socket")], tmp_path)
    assert (code, found["is_warm"], found["argv"]) == (7, False, ["one", "two words"])


def test_a_worker_dies_with_its_client(command: list[str], tmp_path: Path) -> None:
    script = tmp_path / "sleep.py"
    script.write_text(
        "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    )
    client = subprocess.Popen([*command, str(script)], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int((tmp_path / "pid").read_text())
    client.send_signal(signal.SIGKILL)
    client.wait()
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker is still alive"
        time.sleep(0.05)
