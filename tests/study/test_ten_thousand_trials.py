"""10,000 trials through journal, view, summary and MLflow on sqlite: time per trial and memory stay bounded."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from raydet.errors import EXIT_OK
from raydet.runs.usage import Usage
from raydet.tune.budget import UsageMeter
from raydet.tune.journal import read_journal
from raydet.tune.summary import SUMMARY
from tests.study.conftest import environment
from tests.study.many_trials import NUM_CELLS

BLOCK = 1000
"""Number of trials at the start and at the end whose times are compared."""


@pytest.mark.exhaustive
def test_ten_thousand_trials(tmp_path: Path) -> None:
    seeds = -(-10_000 // NUM_CELLS)
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.study.many_trials", str(tmp_path), str(seeds), str(figures)]
    # As on a terminal: the live view draws itself twice a second.
    done = subprocess.run(command, capture_output=True, text=True, env=environment() | {"FORCE_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert found["code"] == EXIT_OK

    per_trial_s = np.diff(found["cpu_s"])
    assert len(per_trial_s) > 10_000
    first, last = fmean(per_trial_s[:BLOCK]), fmean(per_trial_s[-BLOCK:])
    assert last < 1.5 * first, f"{last:.4f} s of CPU per trial at the end, {first:.4f} s at the beginning"
    assert found["resident_bytes"] < 1e9

    journal = read_journal(tmp_path / "gaff")
    assert len(journal.results()) == len(journal.of("tracked")) == seeds * NUM_CELLS
    with (tmp_path / "gaff" / SUMMARY).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * seeds * NUM_CELLS
    total = sum((Usage(gpu_s=3600 * float(row["gpu_hours"])) for row in rows), start=Usage())
    assert UsageMeter(tmp_path / "gaff", journal).total().gpu_s == pytest.approx(total.gpu_s, rel=1e-3)
