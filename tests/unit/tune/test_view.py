"""The estimate of the remaining time, with a fake clock."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
from rich.console import Console

from raydet.config import DetectionTask
from raydet.metrics.names import COCO_METRICS
from raydet.recipes import recipe
from raydet.tune import view as view_module
from raydet.tune.cells import Cell, Trial
from raydet.tune.trial_status import TrialRecord
from raydet.tune.view import StudyView

TRIAL_S = 100.0


class Bench:
    """Trials of 100 seconds each, which write their progress as real ones do."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *, trials: int) -> None:
        self.now, self.directory = 1000.0, directory
        monkeypatch.setattr(view_module, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        self.view = StudyView(Console(quiet=True), "gaff", DetectionTask(), COCO_METRICS[0], total=trials)

    def trial(self, name: str) -> Trial:
        cell = Cell(number=1, phase="phase", code=name, values={})
        return Trial(name=name, phase="phase", cell=cell, seed=0, experiment=recipe("demo"))

    def start(self, name: str, *, step: int = 0) -> None:
        (self.directory / name).mkdir(exist_ok=True)
        self.progress(name, step)
        self.view.started(self.trial(name), self.directory / name)

    def progress(self, name: str, step: int) -> None:
        (self.directory / name / "progress.json").write_text(json.dumps({"step": step, "total_steps": 100}))

    def end(self, name: str) -> None:
        self.view.ended(TrialRecord(self.trial(name), "stopped", reason="mAP 0.1"), is_final=True)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch, trials=4)


def test_there_is_no_estimate_at_the_start(bench: Bench) -> None:
    assert bench.view.time_left_s() is None
    bench.start("a")
    assert bench.view.time_left_s() is None


def test_progress_of_concurrent_trials_counts(bench: Bench) -> None:
    bench.start("a")
    bench.start("b")
    bench.now += TRIAL_S / 2
    for name in "ab":
        bench.progress(name, 50)
    assert bench.view.time_left_s() == pytest.approx(1.5 * TRIAL_S)
    bench.now += TRIAL_S / 2
    bench.progress("b", 100)
    bench.end("a")
    # Not three times as long, as for one trial at a time.
    assert bench.view.time_left_s() == pytest.approx(TRIAL_S)


def test_the_slowest_trial_decides_at_the_end(bench: Bench) -> None:
    for name in "abcd":
        bench.start(name)
    bench.now += TRIAL_S
    for name in "abc":
        bench.end(name)
    bench.progress("d", 25)
    assert bench.view.time_left_s() == pytest.approx(3 * TRIAL_S)


def test_progress_of_earlier_commands_does_not_count(bench: Bench) -> None:
    bench.view.total = 1
    bench.start("a", step=60)
    assert bench.view.time_left_s() is None
    bench.now += 20
    bench.progress("a", 80)
    assert bench.view.time_left_s() == pytest.approx(20)


def test_a_trial_that_has_just_started_is_not_extrapolated(bench: Bench) -> None:
    bench.now -= 100
    for name in "abc":
        bench.start(name)
    bench.now += 90
    bench.start("d")
    bench.now += 10
    for name in "abc":
        bench.progress(name, 90)
    bench.progress("d", 1)
    left_s = bench.view.time_left_s()
    assert left_s is not None
    assert left_s < TRIAL_S


def test_progress_of_a_failed_trial_counts(bench: Bench) -> None:
    bench.view.total = 1
    bench.start("a")
    bench.now += 50
    bench.progress("a", 50)
    bench.view.ended(TrialRecord(bench.trial("a"), "failed", reason="killed"), is_final=False)
    bench.now += 50
    bench.start("a", step=50)
    bench.progress("a", 75)
    assert bench.view.time_left_s() == pytest.approx(100 / 75 * 25)
