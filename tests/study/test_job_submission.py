"""The command that users live by, on a real Ray head: `ray job submit -- python -m raydet.tune ...`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.study.conftest import TINY, environment, names
from tests.study.test_on_ray import mlflow_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray head on the loopback; yields the environment in which `ray job submit` finds it."""
    port, dashboard, agent = free_ports(3)
    home = tmp_path / "home"  # the token of this cluster, if Ray makes one
    home.mkdir()
    # As in an activated virtual environment: jobs run the `python` that the head finds.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = environment() | {"HOME": str(home), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(RAY), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=200000000"]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 90
    while not answers(f"{address}/api/version"):
        assert process.poll() is None, "the head has ended"
        assert time.monotonic() < deadline, "the head does not answer"
        time.sleep(0.5)
    yield env | {"RAY_API_SERVER_ADDRESS": address}
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:  # it wants a token: it is there
        return True
    except OSError:
        return False


def test_a_submitted_study(head: dict[str, str], tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    sets = " ".join(f"--set {path}={value}" for path, value in TINY.items())
    entrypoint = (
        f"python -m raydet.tune --space gaff_phase2 --max-trials 2 --recipe demo --storage {storage} {sets}"
    )
    command = [str(RAY), "job", "submit", "--working-dir", str(ROOT), "--", *entrypoint.split()]
    job = subprocess.run(command, env=head, capture_output=True, text=True, timeout=400)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "controls: 4 trials, 0 finished already, 4 to run" in job.stdout
    assert "[2/37]" in job.stdout
    assert "gaff: 2 of 12 trials finished, by mAP" in job.stdout
    finished = names(storage, "finished")
    assert len(finished) == 2
    assert set(finished.values()) == {1}
    runs = mlflow_runs(storage)
    assert {name for name in runs if name.startswith("control_")} == set(finished)
    assert {status for status, _ in runs.values()} == {"FINISHED"}
