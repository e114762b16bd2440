"""SIGTERM, as from schedulers and spot machines: the run finishes its step, saves, and exits with code 143."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydet.checkpoint.retention import newest_checkpoint
from raydet.errors import EXIT_PREEMPTED
from tests.study.conftest import TINY, environment, names, tune_command


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


def wait_for_steps(driver: subprocess.Popen[str], run_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics_per_batch.csv").exists() or len(steps(run_dir)) < 5:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_all_is_saved(run_dir: Path) -> None:
    checkpoint = newest_checkpoint(run_dir)
    assert checkpoint is not None
    done = steps(run_dir)
    assert done == list(range(len(done)))
    assert json.loads((checkpoint / "state.json").read_text())["step"] == len(done)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("workers", "message"), [(0, "error: stopped after step "), (2, "stopped by SIGTERM; the same command")]
)
@pytest.mark.slow
def test_every_finished_step_is_saved(tmp_path: Path, workers: int, message: str) -> None:
    driver = run(tmp_path / "run", workers, epochs=1000)
    wait_for_steps(driver, tmp_path / "run")
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=180)
    assert driver.returncode == EXIT_PREEMPTED, output
    assert message in output
    assert "Traceback" not in output
    assert_all_is_saved(tmp_path / "run")


@pytest.mark.ray
@pytest.mark.slow
def test_the_running_trial_of_a_study_is_saved(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        tune_command(tmp_path, "--set", "train.epochs=1000", "--set", "train.eval_every=1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    run_dir = tmp_path / "gaff" / "controls" / "control_rgb"
    wait_for_steps(driver, run_dir)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=180)
    assert driver.returncode == EXIT_PREEMPTED, output
    assert "stopped by SIGTERM; the same command continues" in output
    assert_all_is_saved(run_dir)
    assert names(tmp_path, "started") == {run_dir.name: 1}
    assert not names(tmp_path, "failed")
