"""Failing trials are retried or left out, and the study continues."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from raydet.resilience.fault_injection import Fault, inject_fault
from tests.study.conftest import events, names, tune

pytestmark = pytest.mark.ray

FIRST = "exp_001_s3_r4_is0_mb0"


@pytest.mark.slow
def test_the_study_continues_without_it_and_retries_on_request(tmp_path: Path) -> None:
    faults = inject_fault(tmp_path / "faults", Fault("backward", step=1))
    options = ("--max-failures", "0", "--retries", "0")
    result = tune(tmp_path, *options, space="two_stages", extra=faults)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{FIRST}  FAILED: a worker died" in result.stdout
    assert f"{FIRST} is left out, as it failed" in result.stdout
    assert f"1 trials failed, first {FIRST}" in result.stdout
    (promoted,) = (entry for entry in events(tmp_path) if entry["event"] == "promoted")
    assert [choice["pattern"] for choice in promoted["choices"]] == [[4]]
    assert promoted["left_out"] == [FIRST]
    assert len(names(tmp_path, "finished")) == 2
    with (tmp_path / "gaff" / "summary_all_experiments.csv").open(newline="") as file:
        rows = {row["experiment"]: row for row in csv.DictReader(file)}
    assert rows[FIRST]["status"] == "failed"
    assert "a worker died" in rows[FIRST]["reason"]

    again = tune(tmp_path, *options, "--retry-failed", space="two_stages")
    assert again.returncode == 0, again.stdout + again.stderr
    assert names(tmp_path, "finished") == dict.fromkeys(names(tmp_path, "finished"), 1)
    assert len(names(tmp_path, "finished")) == 3
    assert sum(entry["event"] == "promoted" for entry in events(tmp_path)) == 1


@pytest.mark.exhaustive  # which trials are retried, without running them: test_chances.py
def test_a_failed_trial_is_retried_at_the_end_of_the_phase(tmp_path: Path) -> None:
    faults = inject_fault(tmp_path / "faults", Fault("backward", step=1))
    result = tune(tmp_path, "--max-failures", "0", "--max-trials", "3", space="two_stages", extra=faults)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{FIRST}  FAILED, will be retried: a worker died" in result.stdout
    ends = [entry for entry in events(tmp_path) if entry["event"] in ("failed", "finished")]
    second = "exp_002_s4_r4_is0_mb0"
    assert [(entry["event"], entry["name"]) for entry in ends] == [
        ("failed", FIRST),
        ("finished", second),
        ("finished", FIRST),
    ]
