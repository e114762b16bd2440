"""The same run on other layouts: what the number of workers must not change."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from raydet.config import Experiment, apply_overrides
from raydet.evaluate.names import METRIC_NAMES
from raydet.recipes import recipe
from tests.numerics.conftest import Launch

STEPS = 20


def experiment(**overrides: object) -> Experiment:
    """20 steps of 4 pictures; drop-path on, so that random choices are compared too."""
    return apply_overrides(
        recipe("demo"),
        {
            "data.source.num_sequences": 10,
            "data.source.frames_per_sequence": 2,
            "model.backbone.drop_path_rate": 0.1,
            "train.global_batch": 4,
            "train.epochs": 5,
            "train.eval_every": 5,
            "optim.lr": 1e-4,
            **overrides,
        },
    )


def losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_accumulation_equals_two_workers(train: Launch, tmp_path: Path) -> None:
    train(experiment(**{"train.micro_batch": 2}), workers=1, name="alone")
    train(experiment(**{"train.micro_batch": 2}), workers=2, name="pair")
    assert len(losses(tmp_path / "alone")) == STEPS
    assert losses(tmp_path / "pair") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_the_initial_evaluation_is_exact_at_any_worker_count(train: Launch) -> None:
    still = experiment(
        **{"optim.lr": 0.0, "optim.weight_decay": 0.0, "train.epochs": 1, "train.eval_every": 1}
    )
    results = [
        train(apply_overrides(still, {"train.micro_batch": 1}), workers=workers, name=f"w{workers}")["final"]
        for workers in (1, 2, 4)
    ]
    for other in results[1:]:
        assert [other[name] for name in METRIC_NAMES] == [results[0][name] for name in METRIC_NAMES]
