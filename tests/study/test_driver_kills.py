"""The driver of a study is killed again and again: in the end every trial has finished once, everywhere."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.study.conftest import environment, names, tune, tune_command
from tests.study.test_on_ray import mlflow_runs

pytestmark = [pytest.mark.ray, pytest.mark.exhaustive]

NUM_KILLS = int(os.environ.get("RAYDET_TEST_KILLS", "50"))
LONGEST_S = 40.0
"""A trial takes about ten seconds, the start of a study as long: kills fall before, into and after trials."""


def test_journal_tracker_and_summary_agree(tmp_path: Path) -> None:
    chance = random.Random(0)
    finished_before: set[str] = set()
    for _ in range(NUM_KILLS):
        driver = subprocess.Popen(
            tune_command(tmp_path, "--seeds", "2", space="gaff_phase1"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        time.sleep(chance.uniform(0.5, LONGEST_S))
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL, "it had ended before"
        finished = names(tmp_path, "finished")
        assert finished_before <= set(finished)
        assert all(count == 1 for count in finished.values())
        finished_before = set(finished)
        if len(finished) >= 14:  # two are left for the last command
            break
    last = tune(tmp_path, "--seeds", "2", space="gaff_phase1")
    assert last.returncode == 0, last.stdout + last.stderr
    finished = names(tmp_path, "finished")
    assert len(finished) == 16
    assert set(finished.values()) == {1}
    assert names(tmp_path, "tracked") == finished
    runs = mlflow_runs(tmp_path)
    assert {name for name, (status, _) in runs.items() if status == "FINISHED"} >= set(finished)
    with (tmp_path / "gaff" / "summary_all_experiments.csv").open(newline="") as file:
        rows = {row["experiment"]: row["status"] for row in csv.DictReader(file)}
    assert rows == dict.fromkeys(finished, "finished")
