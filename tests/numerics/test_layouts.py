"""The same run on other layouts: what the number of workers must not change."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from raydet.config import Experiment, apply_overrides
from raydet.evaluate.names import METRIC_NAMES
from raydet.recipes import recipe
from tests.numerics.conftest import Launch, Start

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


EVALUATE = """
import json, sys
from pathlib import Path
import torch
from raydet.config import Experiment
from raydet.data.build import open_source
from raydet.data.split import split_indices
from raydet.models.build import build_detector
from raydet.parallel.checkpoint import load_checkpoint
from raydet.parallel.collectives import world_from_environment
from raydet.train.process import Evaluator

run_dir = Path(sys.argv[1])
experiment = Experiment.from_json((run_dir / "config.json").read_text(), where="test")
world = world_from_environment()
source = open_source(experiment.data)
_, val = split_indices(source, experiment.data.split)
detector = build_detector(experiment)
load_checkpoint(sorted(run_dir.glob("checkpoints/epoch_*"))[-1], model=detector)
print(json.dumps(Evaluator(experiment, source, val, world).evaluate(detector).metrics))
"""


def test_an_evaluation_is_exact_at_any_worker_count(train: Launch, start: Start, tmp_path: Path) -> None:
    learning = {"data.source.num_sequences": 20, "train.epochs": 8, "train.eval_every": 8, "optim.lr": 4e-3}
    final = train(experiment(**learning), workers=1)["final"]
    assert final["mAP_50"] > 0.1, "nothing is compared if nothing is found"
    for workers in (1, 2, 4):
        outputs = start([sys.executable, "-c", EVALUATE, str(tmp_path / "run")], workers=workers)
        for output in outputs:  # the same on every rank
            found = json.loads(output.splitlines()[-1])
            assert [found[name] for name in METRIC_NAMES] == [final[name] for name in METRIC_NAMES]


def test_a_loss_that_is_not_finite_is_named_by_every_rank(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(experiment(**{"optim.lr": 1e30, "optim.clip_norm": None}).to_json())
    command = [sys.executable, "-m", "raydet", "train", "--config", str(config), "--workers", "0"]
    command += ["--run-dir", str(tmp_path / "run"), "--tracking-uri", "none"]
    for output in start(command, workers=2, code=1):
        assert "the loss is not finite at step" in output
        assert "pictures sequence_" in output
