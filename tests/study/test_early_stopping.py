"""Early stopping: the rule compared with Ray Tune's, and the fate of stopped trials."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from raydet.config import TrainConfig, apply_overrides
from raydet.errors import StudyError
from raydet.metrics.names import COCO_METRICS
from raydet.recipes import recipe
from raydet.resilience.stop_signal import Stop, StopKind, request_stop, requested_stop
from raydet.runs.epoch_watcher import read_epochs
from raydet.runs.results import EpochRow
from raydet.tune.cells import Trial, grid_cells, seeds_of, trial_directory, trials_of
from raydet.tune.early_stopping import EarlyStopping, Screening
from tests.study.conftest import events, names, tune
from tune_spaces import gaff_phase1

BASE = apply_overrides(recipe("demo"), {"train.epochs": 9, "train.eval_every": 1})


class FakeTrial:
    """A trial as far as Tune's bracket uses it."""

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(2, 5))
def test_the_rule_equals_that_of_ray_tune(scores: list[float], reduction: int) -> None:
    rule = EarlyStopping(grace_epochs=1, reduction=reduction)
    bracket = _Bracket(min_t=1, max_t=100, reduction_factor=reduction, s=0)
    for number, score in enumerate(scores):
        bar = rule.bar(scores[:number])
        is_stopped = bar is not None and score < bar
        assert bracket.on_result(FakeTrial(number), 1, score) == ("STOP" if is_stopped else "CONTINUE")


def test_rungs_must_be_evaluated_epochs_before_the_end() -> None:
    with pytest.raises(StudyError, match=r"--asha 4 must be less than train\.epochs=4"):
        EarlyStopping(4).rungs(TrainConfig(epochs=4))
    with pytest.raises(StudyError, match=r"--asha must be a multiple of train\.eval_every=2, got 3"):
        EarlyStopping(3).rungs(TrainConfig(epochs=12, eval_every=2))


def write_epochs(root: Path, trial: Trial, scores: list[float]) -> list[EpochRow]:
    run_dir = trial_directory(root, trial)
    run_dir.mkdir(parents=True, exist_ok=True)
    rows = [{"epoch": epoch, "mAP": score} for epoch, score in enumerate(scores, start=1)]
    with (run_dir / "metrics_per_epoch.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "mAP"])
        writer.writeheader()
        writer.writerows(rows)
    return read_epochs(run_dir / "metrics_per_epoch.csv")


def test_a_trial_far_behind_is_stopped_once(tmp_path: Path) -> None:
    study = gaff_phase1.study(BASE)
    trials = trials_of(study, grid_cells(study, gaff_phase1.PHASE, first_number=1), seeds_of(study, 1))
    screening = Screening(EarlyStopping(2, 2), trials, root=tmp_path, metric=COCO_METRICS[0])
    good, bad = trials[:2]
    screening.begin(good)
    screening.begin(bad)
    screening.judge(good, write_epochs(tmp_path, good, [0.1, 0.5, 0.6, 0.7]))
    assert screening.stops == {}
    rows = write_epochs(tmp_path, bad, [0.9])
    screening.judge(bad, rows)  # the first epoch is not a rung
    assert screening.stops == {}
    screening.judge(bad, write_epochs(tmp_path, bad, [0.9, 0.4, 0.4, 0.4, 0.4]))
    stop = screening.stops[bad.key]
    assert (stop.epoch, stop.score, stop.bar) == (2, 0.4, 0.5)
    request = requested_stop(trial_directory(tmp_path, bad))
    assert request == Stop(StopKind.EARLY, "0.4000 after epoch 2, 0.5000 was needed to continue")
    assert requested_stop(trial_directory(tmp_path, good)) is None
    rows = write_epochs(tmp_path, bad, [0.9, 0.4] + [0.0] * 7)
    screening.judge(bad, rows)  # it trains on until it obeys the request
    assert screening.stops[bad.key] is stop


def test_a_restarted_driver_does_not_judge_a_rung_again(tmp_path: Path) -> None:
    study = gaff_phase1.study(BASE)
    trials = trials_of(study, grid_cells(study, gaff_phase1.PHASE, first_number=1), seeds_of(study, 1))
    good, bad = trials[:2]
    write_epochs(tmp_path, good, [0.9] * 3)
    rows = write_epochs(tmp_path, bad, [0.1] * 3)
    screening = Screening(EarlyStopping(2, 2), trials, root=tmp_path, metric=COCO_METRICS[0])
    screening.begin(bad)
    screening.judge(bad, rows)
    assert screening.stops == {}
    write_epochs(tmp_path, good, [0.9] * 4)
    screening.judge(bad, write_epochs(tmp_path, bad, [0.1] * 4))
    assert screening.stops[bad.key].epoch == 4


def test_a_stop_request_replaces_an_earlier_one(tmp_path: Path) -> None:
    request_stop(tmp_path, StopKind.EARLY, "far behind")
    request_stop(tmp_path, StopKind.END, "the driver was asked to stop")
    assert requested_stop(tmp_path) == Stop(StopKind.END, "the driver was asked to stop")


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_trial_resumes_if_a_comparison_needs_it(tmp_path: Path) -> None:
    # The second trial seems to be very good, so the first one is far behind.
    root = tmp_path / "gaff"
    stale = root / "phase1_stage_selection" / "exp_002_s4_r4_is0_mb0"
    stale.mkdir(parents=True)
    (stale / "metrics_per_epoch.csv").write_text("epoch,mAP\n1,0.9\n")
    result = tune(
        tmp_path, "--asha", "1", "--set", "train.epochs=20", "--set", "train.eval_every=1", space="two_stages"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    first = "exp_001_s3_r4_is0_mb0"
    kinds = [entry["event"] for entry in events(tmp_path) if entry.get("name") == first]
    assert kinds == ["started", "stopped", "started", "finished", "tracked"]
    assert "stopped early: mAP 0.0000 after epoch 1, 0.9000 was needed to continue" in result.stdout
    assert "promoted stages [3]: mean 0.0000 when it was stopped early after epoch 1" in result.stdout
    assert len(names(tmp_path, "finished")) == 4
    assert set(names(tmp_path, "finished").values()) == {1}
    with (root / "phase1_stage_selection" / first / "metrics_per_batch.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(len(steps)))
    assert len(steps) % 20 == 0
