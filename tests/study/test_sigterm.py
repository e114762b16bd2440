"""SIGTERM, as schedulers and spot machines send it: the step is finished and saved, exit code 143."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydet.errors import EXIT_PREEMPTED
from raydet.train.checkpoints import newest_checkpoint
from tests.study.conftest import TINY, environment


def run(run_dir: Path, workers: int, epochs: int) -> subprocess.Popen[str]:
    overrides = TINY | {"train.epochs": epochs, "train.eval_every": epochs}
    sets = [part for path, value in overrides.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    command = [sys.executable, "-m", "raydet", "train", "--recipe", "demo", "--workers", str(workers), *sets]
    command += ["--cpus-per-worker", "1", "--run-dir", str(run_dir), "--tracking-uri", "none"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )


def steps(run_dir: Path) -> list[int]:
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("workers", "message"), [(0, "error: stopped after step "), (2, "stopped by SIGTERM; the same command")]
)
def test_every_finished_step_is_saved(tmp_path: Path, workers: int, message: str) -> None:
    driver = run(tmp_path / "run", workers, epochs=1000)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics_per_batch.csv").exists() or len(steps(tmp_path / "run")) < 5:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == EXIT_PREEMPTED, output
    assert message in output
    assert "Traceback" not in output
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    done = steps(tmp_path / "run")
    assert done == list(range(len(done)))
    assert json.loads((checkpoint / "state.json").read_text())["step"] == len(done)
