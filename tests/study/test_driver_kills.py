"""The driver of a study is killed repeatedly: in the end, every trial has finished exactly once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from raydet.verify.study import check_study
from tests.study.conftest import environment, names, tune, tune_command

pytestmark = [pytest.mark.ray, pytest.mark.exhaustive]

NUM_KILLS = int(os.environ.get("RAYDET_TEST_KILLS", "50"))
LONGEST_S = 40.0
"""Longest time until a kill. A study starts in about ten seconds, so kills come before, during and between trials."""
STUDY = ("--seeds", "2", "--checkpoint-minutes", "0.02", "--set", "train.epochs=60")


def test_journal_tracker_and_summary_agree(tmp_path: Path) -> None:
    generator = random.Random(0)
    finished_before: set[str] = set()
    for _ in range(NUM_KILLS):
        driver = subprocess.Popen(
            tune_command(tmp_path, *STUDY, space="twelve_trials"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        time.sleep(generator.uniform(0.5, LONGEST_S))
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL, "it had ended before"
        finished = names(tmp_path, "finished")
        assert finished_before <= set(finished)
        assert all(count == 1 for count in finished.values())
        finished_before = set(finished)
    assert 0 < len(finished_before) < 12, "all kills came before the first trial ended, or after the last one"
    last = tune(tmp_path, *STUDY, space="twelve_trials")
    assert last.returncode == 0, last.stdout + last.stderr
    report = check_study(tmp_path / "gaff")
    assert report.problems == []
    assert report.num_finished == report.num_tracked == report.num_whole == 12
