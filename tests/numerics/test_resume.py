"""A run that was cut off after an epoch goes on as if nothing had happened, to the last bit."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from raydet.checkpoint.retention import checkpoints_to_drop, newest_checkpoint
from raydet.config import Experiment, apply_overrides
from raydet.engine.process import run_process
from raydet.errors import ConfigError
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.results import EpochRow
from raydet.runs.run_dir import claim_run_directory

EXPERIMENT = apply_overrides(
    recipe("demo"),
    {
        "data.source.num_sequences": 6,
        "data.source.frames_per_sequence": 2,
        "data.split.num_blocks": 3,
        "model.backbone.drop_path_rate": 0.1,
        "train.global_batch": 4,
        "train.epochs": 4,
        "train.keep_checkpoints": 1,
    },
)


class PowerCutError(Exception):
    """The power fails."""


def run(
    run_dir: Path, *, cut_after: int | None = None, experiment: Experiment = EXPERIMENT
) -> dict[str, Any]:
    claim_run_directory(run_dir, experiment)

    def publish(row: EpochRow) -> None:
        if row.epoch == cut_after:
            raise PowerCutError

    return run_process(experiment, run_dir=run_dir, world=World(), publish=publish).as_json()


def rows(run_dir: Path, name: str) -> list[dict[str, str]]:
    with (run_dir / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_rest_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    expected = run(straight)
    with pytest.raises(PowerCutError):
        run(cut, cut_after=2)
    # what an interrupted epoch left behind is replaced
    with (cut / "metrics_per_batch.csv").open("a") as file:
        file.write("4,3,0.1,9,9,9,9,9\n")
    results = run(cut)
    assert rows(cut, "metrics_per_batch.csv") == rows(straight, "metrics_per_batch.csv")
    assert results["final"]["mAP"] == expected["final"]["mAP"]
    assert [row["loss"] for row in results["history"]] == [row["loss"] for row in expected["history"]]
    assert len(rows(cut, "metrics_per_epoch.csv")) == 4


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    experiment = apply_overrides(EXPERIMENT, {"train.keep_checkpoints": 4})
    with pytest.raises(PowerCutError):
        run(tmp_path / "run", cut_after=2, experiment=experiment)
    checkpoints = tmp_path / "run" / "checkpoints"
    (path,) = (checkpoints / "epoch_0002").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert newest_checkpoint(tmp_path / "run") == checkpoints / "epoch_0001"
    (checkpoints / ".epoch_0002").mkdir()  # a copy that was cut off
    results = run(tmp_path / "run", experiment=experiment)
    assert [row["epoch"] for row in results["history"]] == [1, 2, 3, 4]


def test_a_directory_belongs_to_one_config(tmp_path: Path) -> None:
    claim_run_directory(tmp_path / "run", EXPERIMENT)
    claim_run_directory(tmp_path / "run", EXPERIMENT)
    with pytest.raises(ConfigError, match="holds a run with another config"):
        claim_run_directory(tmp_path / "run", apply_overrides(EXPERIMENT, {"train.epochs": 9}))


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    paths = [tmp_path / f"epoch_{epoch:04d}" for epoch in range(4)]
    scores = dict(zip(paths, (0.1, 0.5, 0.3, 0.2), strict=True))
    assert checkpoints_to_drop(scores, newest=paths[3], keep=2) == [paths[0]]
    assert checkpoints_to_drop(scores, newest=paths[0], keep=1) == [paths[2], paths[3]]


def test_an_incomplete_checkpoint_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        run(tmp_path / "run", cut_after=1)
    complete = tmp_path / "run" / "checkpoints" / "epoch_0001"
    torn = complete.with_name("epoch_0002")
    shutil.copytree(complete, torn)
    (torn / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path / "run") == complete


def test_other_threads_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment = apply_overrides(EXPERIMENT, {"train.epochs": 2})
    with pytest.raises(PowerCutError):
        run(tmp_path, cut_after=1, experiment=experiment)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        run(tmp_path, experiment=experiment)
    finally:
        torch.set_num_threads(threads)
    found = [record.getMessage() for record in caplog.records if "up to rounding" in record.getMessage()]
    assert found == [
        "losses will agree with those of an uninterrupted run up to rounding only: "
        f"threads {threads} before, {threads + 1} now"
    ]
