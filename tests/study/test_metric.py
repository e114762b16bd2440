"""Ranking, promotion, early stopping, the best epoch and the kept checkpoints follow the metric that decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raydet.checkpoint.manifest import read_manifest
from raydet.cli import main
from raydet.cli.spaces import load_space
from raydet.config import Metric, apply_overrides
from raydet.engine.preflight import check_decidable
from raydet.engine.process import run_process
from raydet.errors import ConfigError, StudyError
from raydet.metrics.names import COCO_METRICS, VAL_LOSS
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.results import EpochRow
from raydet.runs.run_dir import claim_run_directory
from raydet.tasks.build import build_task
from raydet.tune.cells import Trial
from raydet.tune.early_stopping import EarlyStopping, Screening
from raydet.tune.journal import Events
from raydet.tune.phases import all_trials
from raydet.tune.select import promote
from raydet.tune.study import Study
from raydet.tune.trial_status import TrialRecord, candidates_of, contenders, ranked, ranking_table
from raydet.tune.view import StudyView
from tests.results import results_with
from tests.study.conftest import TINY

LARGE_ONLY = {"data.source.num_sequences": 4, "task.size_bins_px": [1.0, 2.0]}
"""No object is smaller than a pixel."""


def study_by(metric: str) -> Study:
    return load_space("gaff_phase1", recipe("demo"), {"task.metric": metric})


def finished(study: Study, scores: list[dict[str, float | None]]) -> list[TrialRecord]:
    trials = [trial for trial in all_trials(study, Events([]), 1) if not trial.cell.is_control]
    return [
        TrialRecord(
            trial, "finished", results=results_with({"mAP": 0.5, "mAP_50": 0.6, "val_loss": 1.0} | score)
        )
        for trial, score in zip(trials, scores, strict=False)
    ]


@pytest.mark.parametrize("name", ["mAP_50", "val_loss", "AP/circle"])
def test_every_trial_is_trained_with_the_metric_of_the_study(name: str) -> None:
    study = study_by(name)
    assert study.decider.name == name
    assert study.decider.higher_is_better == (name != "val_loss")
    assert {trial.experiment.task.metric for trial in all_trials(study, Events([]), 1)} == {name}


def test_the_default_metric_leaves_the_config_as_it_is() -> None:
    studies = study_by("mAP"), load_space("gaff_phase1", recipe("demo"), {})
    trials = [all_trials(study, Events([]), 1) for study in studies]
    assert trials[0] == trials[1]


def test_smaller_is_better_where_the_metric_says_so() -> None:
    study = study_by("val_loss")
    records = finished(study, [{"val_loss": 3.0}, {"val_loss": 1.0}, {"val_loss": 2.0}])
    names = [record.trial.name for record in records]
    assert [record.trial.name for record in ranked(records, study.decider)] == [names[1], names[2], names[0]]
    assert contenders(records, study.decider) == [(records[1].trial.cell.code, 1.0)]
    candidates = candidates_of(records, "model.fusion_stages", study.decider)
    first, second = promote(candidates, metric=study.decider, top=2, margin=0.0)
    assert (first.mean, second.mean) == (1.0, 2.0)
    table = ranking_table(study, records)
    assert [str(column.header) for column in table.columns][:5] == [
        "rank",
        "trial",
        "val loss",
        "mAP",
        "AP50",
    ]
    view = StudyView(Console(quiet=True), study.name, study.base.task, study.decider)
    for record in records:
        view.ended(record, is_final=True)
    assert view.best is records[1]


def test_an_undefined_score_is_never_zero() -> None:
    study = study_by("mAP_small")
    records = finished(study, [{"mAP_small": None}, {"mAP_small": 0.1}])
    with pytest.raises(StudyError, match=f"mAP_small is undefined for {records[0].trial.name}"):
        candidates_of(records, "model.fusion_stages", study.decider)
    assert ranked(records, study.decider)[0] is records[1]


def test_early_stopping_keeps_the_small_losses(tmp_path: Path) -> None:
    trials: list[Trial] = [
        trial for trial in all_trials(study_by("val_loss"), Events([]), 1) if not trial.cell.is_control
    ]
    screening = Screening(EarlyStopping(1, reduction=2), trials, root=tmp_path, metric=VAL_LOSS)
    for trial, loss in zip(trials, (1.0, 2.0, 3.0), strict=False):
        run_dir = tmp_path / trial.phase / trial.name
        claim_run_directory(run_dir, trial.experiment)
        (run_dir / "metrics_per_epoch.csv").write_text(
            f"epoch,loss,train_s,images_per_s,val_loss\n1,1.0,1.0,1.0,{loss}\n"
        )
        screening.begin(trial)
        screening._judged[trial.key] = 0
        screening.judge(trial, [EpochRow(1, 1.0, 1.0, 1.0, {"val_loss": loss})])
    stops = [(stop.score, stop.bar) for stop in screening.stops.values()]
    assert list(screening.stops) == [trials[1].key, trials[2].key]
    assert stops == [(2.0, 1.0), (3.0, 1.5)]


@pytest.mark.parametrize("metric", [VAL_LOSS, COCO_METRICS[1]], ids=lambda metric: metric.name)
def test_the_best_checkpoints_are_kept_by_it(metric: Metric, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "train.epochs": 5,
        "train.keep_checkpoints": 1,
        "task.metric": metric.name,
        "optim.lr": 0.02,
    }
    experiment = apply_overrides(recipe("demo"), TINY | changes)
    claim_run_directory(tmp_path, experiment)
    results = run_process(experiment, run_dir=tmp_path, world=World())
    best = max(results.history, key=lambda row: metric.utility(row[metric.name]))
    assert results.best == best
    kept = {path.name: read_manifest(path).score for path in (tmp_path / "checkpoints").iterdir()}
    newest_best = max(results.history, key=lambda row: (metric.utility(row[metric.name]), row.epoch))
    assert kept.keys() == {f"epoch_{newest_best.epoch:04d}", "epoch_0005"}
    assert kept[f"epoch_{newest_best.epoch:04d}"] == metric.utility(best[metric.name])


def test_a_study_by_a_size_that_no_object_has_is_refused_before_the_first_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = apply_overrides(recipe("demo"), {**LARGE_ONLY, "task.metric": "mAP_small"})
    with pytest.raises(ConfigError, match="mAP_small is undefined on the"):
        check_decidable(experiment, build_task(experiment))
    check_decidable(apply_overrides(experiment, {"task.metric": "mAP_large"}), build_task(experiment))
    settings = {**LARGE_ONLY, "task.metric": "mAP_small"}
    sets = [part for path, value in settings.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--space", "gaff_phase1", "--recipe", "demo", *sets, "--storage", str(tmp_path)])
    assert caught.value.code == 2
    assert "mAP_small is undefined" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
