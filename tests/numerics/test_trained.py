"""A run opened again finds what it found at its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydet.config import apply_overrides
from raydet.engine.evaluator import Evaluator
from raydet.engine.open_run import open_trained
from raydet.engine.process import run_process
from raydet.errors import ConfigError
from raydet.metrics.matches import MatchRecords
from raydet.metrics.records import read_records
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.run_dir import claim_run_directory

SETTINGS = {
    "data.source": {"kind": "synthetic", "num_sequences": 9, "frames_per_sequence": 3},
    "train.epochs": 2,
    "train.eval_batch": 3,
    "model.head.score_threshold": 0.0,  # so short a run finds nothing that it is sure of
}


@pytest.mark.parametrize("ema_decay", [None, 0.9], ids=["own-weights", "averaged"])
def test_an_opened_run_scores_as_it_did(ema_decay: float | None, tmp_path: Path) -> None:
    experiment = apply_overrides(recipe("demo"), SETTINGS | {"optim.ema_decay": ema_decay})
    claim_run_directory(tmp_path, experiment)
    run_process(experiment, run_dir=tmp_path, world=World())
    run = open_trained(tmp_path)
    evaluator = Evaluator(run.task, run.experiment, run.source, run.indices, World())
    scores, _ = evaluator.evaluate(run.model)
    records, earlier = scores.records, read_records(tmp_path)
    assert isinstance(records, MatchRecords)
    assert isinstance(earlier, MatchRecords)
    np.testing.assert_array_equal(records.scores_N, earlier.scores_N)
    np.testing.assert_array_equal(records.image_index_N, earlier.image_index_N)
    assert len(records.scores_N) > 0


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run directory"):
        open_trained(tmp_path)


def test_a_run_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    claim_run_directory(tmp_path, recipe("demo"))
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        open_trained(tmp_path)
