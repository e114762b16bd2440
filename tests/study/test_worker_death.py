"""After a worker is killed, a run resumes from its newest checkpoint, with every step exactly once."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raydet.errors import EXIT_OUT_OF_MEMORY
from tests.study.conftest import TINY, environment

pytestmark = pytest.mark.ray

EPOCHS = 60


def test_a_killed_worker_costs_an_epoch_at_most(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = TINY | {"train.epochs": EPOCHS, "train.eval_every": EPOCHS}
    sets = [part for path, value in overrides.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    command = [sys.executable, "-m", "raydet", "train", "--recipe", "demo", "--workers", "2", *sets]
    command += ["--cpus-per-worker", "1", "--run-dir", str(run_dir), "--tracking-uri", "none"]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    deadline = time.monotonic() + 120
    while not (run_dir / "checkpoints" / "epoch_0003" / "manifest.json").exists():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    descendants = psutil.Process(driver.pid).children(recursive=True)
    workers = [process for process in descendants if "RayTrainWorker" in " ".join(process.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    output, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, output
    assert "continuing after step" in (run_dir / "training.log").read_text()
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(len(steps)))
    assert len(steps) == EPOCHS * json.loads((run_dir / "model_info.json").read_text())["steps_per_epoch"]


@pytest.mark.slow
def test_a_run_that_fills_host_memory_restarts_and_then_fails_clearly(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = TINY | {"train.epochs": 1000, "train.eval_every": 1000}
    sets = [part for path, value in overrides.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    command = [sys.executable, "-m", "raydet", "train", "--recipe", "demo", "--workers", "1", *sets]
    command += ["--run-dir", str(run_dir), "--tracking-uri", "none", "--heartbeat-seconds", "4"]
    command += ["--host-memory-percent", "0.1", "--max-failures", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment())
    assert result.returncode == EXIT_OUT_OF_MEMORY, result.stdout + result.stderr
    assert "(host RAM, not GPU: " in result.stderr
    assert "what helps" not in result.stderr, "a plan for GPUs"
    log = (run_dir / "training.log").read_text()
    assert log.count("starting at step 0") == 1
    assert log.count("continuing after step") == 1
