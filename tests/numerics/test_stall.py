"""A rank that stands still is named, with what it was doing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydet.config import apply_overrides
from raydet.errors import EXIT_STALLED
from raydet.resilience.current_phase import PHASE_NAMES
from raydet.resilience.heartbeat import STALL_REPORT
from tests.numerics.conftest import free_port
from tests.numerics.test_resume import EXPERIMENT

HEARTBEAT_S = 4.0


@pytest.mark.slow
def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    config, run_dir = tmp_path / "config.json", tmp_path / "run"
    config.write_text(apply_overrides(EXPERIMENT, {"train.epochs": 500, "train.eval_every": 500}).to_json())
    command = [sys.executable, "-m", "raydet", "train", "--config", str(config), "--run-dir", str(run_dir)]
    command += ["--workers", "0", "--tracking-uri", "none", "--heartbeat-seconds", str(HEARTBEAT_S)]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    heartbeats = [run_dir / "heartbeats" / f"rank_{rank:04d}.json" for rank in range(2)]
    try:
        deadline = time.monotonic() + 120
        while not all(path.exists() and json.loads(path.read_text())["step"] > 0 for path in heartbeats):
            assert time.monotonic() < deadline
            assert ranks[0].poll() is None
            time.sleep(0.1)
        os.kill(ranks[1].pid, signal.SIGSTOP)
        output, _ = ranks[0].communicate(timeout=180)
        assert ranks[0].returncode == EXIT_STALLED, output
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    report = json.loads((run_dir / STALL_REPORT).read_text())
    assert report["rank"] == 1
    assert report["pid"] == ranks[1].pid
    assert report["phase"] in set(PHASE_NAMES)
    assert report["stack"]
    assert f"rank 1 (pid {ranks[1].pid}) is stalled, no heartbeat for" in output
