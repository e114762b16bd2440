"""Several training processes on this machine, without Ray: gloo over the loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydet.config import Experiment

Launch = Callable[..., dict[str, Any]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def train(tmp_path: Path) -> Launch:
    """Train an experiment as `workers` processes, as `torchrun` would; returns final_results.json."""

    def launch(experiment: Experiment, *, workers: int, name: str = "run") -> dict[str, Any]:
        config = tmp_path / f"{name}.json"
        config.write_text(experiment.to_json())
        run_dir = tmp_path / name
        command = [
            sys.executable,
            "-m",
            "raydet",
            "train",
            "--config",
            str(config),
            "--run-dir",
            str(run_dir),
        ]
        command += ["--workers", "0", "--tracking-uri", "none"]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(workers)}
        processes = [
            subprocess.Popen(
                command,
                env={
                    **os.environ,
                    **shared,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(workers)
        ]
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
        results: dict[str, Any] = json.loads((run_dir / "final_results.json").read_text())
        return results

    return launch
