from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

from raydet.recipes import recipe
from raydet.runs.usage import Usage
from raydet.tune import summary
from raydet.tune.cells import grid_cells, seeds_of, trials_of
from raydet.tune.summary import SUMMARY, Summary
from raydet.tune.trial_status import TrialRecord
from tune_spaces import gaff_phase1

STUDY = gaff_phase1.study(recipe("demo"))
TRIALS = trials_of(STUDY, grid_cells(STUDY, gaff_phase1.PHASE, first_number=1), seeds_of(STUDY, 1))


def statuses(directory: Path) -> list[str]:
    with (directory / SUMMARY).open(newline="") as file:
        return [row["status"] for row in csv.DictReader(file)]


def test_rows_stay_in_order_and_contain_usage(tmp_path: Path) -> None:
    written = Summary(STUDY, tmp_path)
    written.add(TrialRecord(trial, "pending") for trial in TRIALS)
    written.ended(TrialRecord(TRIALS[2], "failed", reason='a "reason"\nin lines', usage=Usage(gpu_s=7200)))
    written.write()
    with (tmp_path / SUMMARY).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == [trial.name for trial in TRIALS]
    assert [row["gpu_hours"] for row in rows] == ["", "", "2.0", "", "", "", "", ""]
    assert rows[2]["reason"] == 'a "reason"\nin lines'


def test_a_slow_file_is_not_written_for_every_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 1.0, 20.9, 21.0, 21.0, 22.0])
    monkeypatch.setattr(summary, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    written = Summary(STUDY, tmp_path)
    written.add(TrialRecord(trial, "pending") for trial in TRIALS)
    # Writing takes a second, so the next write is 20 s later.
    for trial, num_failed in zip(TRIALS[:3], (1, 1, 3), strict=True):
        written.ended(TrialRecord(trial, "failed", reason="test"))
        assert statuses(tmp_path).count("failed") == num_failed
