"""Several training processes on this machine, without Ray: gloo over the loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raydet.config import Experiment

Launch = Callable[..., dict[str, Any]]
Start = Callable[..., list[str]]


BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:  # a test that was killed must leave nothing behind
    pass
"""


@contextmanager
def busy_core() -> Iterator[None]:
    """While the block runs, another process never rests."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_processes(command: list[str], *, workers: int, code: int = 0) -> list[str]:
    """Run a command as `workers` processes, as `torchrun` would; returns each one's output."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
    }
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(workers)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * workers, "\n".join(outputs)
    return outputs


def launch_training(
    experiment: Experiment, *, workers: int, directory: Path, name: str
) -> tuple[dict[str, Any], str]:
    """Train an experiment without Ray in `directory / name`; returns final_results.json and all workers' output."""
    config = directory / f"{name}.json"
    config.write_text(experiment.to_json())
    run_dir = directory / name
    command = [sys.executable, "-m", "raydet", "train", "--config", str(config), "--run-dir", str(run_dir)]
    outputs = start_processes([*command, "--workers", "0", "--tracking-uri", "none"], workers=workers)
    results: dict[str, Any] = json.loads((run_dir / "final_results.json").read_text())
    return results, "".join(outputs)


@pytest.fixture
def start() -> Start:
    """`start_processes`."""
    return start_processes


@pytest.fixture
def train(tmp_path: Path) -> Launch:
    """`launch_training` in the test's directory."""

    def launch(experiment: Experiment, *, workers: int, name: str = "run") -> dict[str, Any]:
        return launch_training(experiment, workers=workers, directory=tmp_path, name=name)[0]

    return launch
