"""An image with a box that is not a number: named, and dealt with as the config says."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydet.checkpoint.diff import compare_checkpoints
from raydet.config import Experiment, apply_overrides
from raydet.data.build import open_source
from raydet.data.transforms import train_transform
from raydet.engine import process
from raydet.engine.loss_log import keep_batches
from raydet.engine.process import run_process
from raydet.errors import NonFiniteLossError
from raydet.parallel.collectives import World
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.runs.results import RunResults
from raydet.runs.run_dir import claim_run_directory
from raydet.structures import Batch, Boxes, Sample
from raydet.verify.study import run_problems
from tests.numerics.conftest import Start
from tests.numerics.test_resume import EXPERIMENT

EPOCHS = 3
EVERY_STEP = FaultTolerance(checkpoint_steps=1)


def batches_of(step: int) -> Sequence[Batch]:
    """What one worker is fed at a step of the first epoch."""
    source = open_source(EXPERIMENT.data)
    train = process.split_indices(source, EXPERIMENT.data.split)["train"]
    loader = process.TrainLoader(
        source,
        train,
        data=EXPERIMENT.data,
        seed=EXPERIMENT.seed,
        global_batch=4,
        micro_batch=4,
        accumulation=1,
        rank=0,
        world_size=1,
    )
    return next(loader.epoch(0, step))


@pytest.fixture
def victim(monkeypatch: pytest.MonkeyPatch) -> str:
    """The image that is poisoned: one of the first epoch's second step."""
    image_id = batches_of(1)[0].image_ids[2]

    def poisoned(sample: Sample, **settings: Any) -> Sample:
        sample = train_transform(sample, **settings)
        if sample.image_id != image_id:
            return sample
        return replace(sample, target=Boxes(torch.full((1, 4), torch.nan), torch.zeros(1, dtype=torch.int64)))

    # After the sources, which refuse such boxes, and the transforms, which drop them.
    monkeypatch.setattr("raydet.data.loader.train_transform", poisoned)
    return image_id


def run(run_dir: Path, policy: str) -> dict[str, Any]:
    experiment: Experiment = apply_overrides(
        EXPERIMENT, {"train.non_finite": policy, "train.epochs": EPOCHS, "train.eval_every": EPOCHS}
    )
    claim_run_directory(run_dir, experiment)
    return run_process(experiment, run_dir=run_dir, world=World(), fault_tolerance=EVERY_STEP).as_json()


def steps(run_dir: Path) -> list[int]:
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_stop_names_the_image_and_saves_nothing_of_it(tmp_path: Path, victim: str) -> None:
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path, "stop")
    assert "at step 1 (epoch 1)" in str(caught.value)
    assert f"because of {victim}: a pixel or a box is not finite" in str(caught.value)
    state = json.loads((tmp_path / "checkpoints" / "epoch_0000_step_00000001" / "state.json").read_text())
    assert state["step"] == 1
    kept = load_file(tmp_path / "non_finite_step_00000001.safetensors")
    (names,) = json.loads((tmp_path / "non_finite_step_00000001.json").read_text())["image_ids"]
    is_bad = torch.isnan(kept["0.boxes_xyxy"]).flatten(1).any(dim=1).tolist()
    assert [name for name, bad in zip(names, is_bad, strict=True) if bad] == [victim]
    assert kept["0.modalities.rgb"].shape[0] == len(names) == 4


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_the_step_is_passed_over(tmp_path: Path, victim: str, policy: str) -> None:
    results = run(tmp_path, policy)
    skipped = results["skipped_steps"]
    assert len(skipped) == EPOCHS
    assert skipped[0] == 1
    done = steps(tmp_path)
    assert done == [step for step in range(done[-1] + 1) if step not in skipped]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in results["history"])
    log = (tmp_path / "training.log").read_text()
    assert log.count(f"because of {victim}") == EPOCHS
    assert list(run_problems(tmp_path, "run", RunResults.parse(results))) == []
    assert list(run_problems(tmp_path, "run", RunResults.parse(results | {"skipped_steps": []}))) != []


def test_both_ways_of_passing_over_come_to_the_same(tmp_path: Path, victim: str) -> None:
    skip, rollback = run(tmp_path / "skip", "skip"), run(tmp_path / "rollback", "rollback")
    assert [row["loss"] for row in skip["history"]] == [row["loss"] for row in rollback["history"]]
    assert skip["digest"] == rollback["digest"]
    last = [tmp_path / policy / "checkpoints" / f"epoch_{EPOCHS:04d}" for policy in ("skip", "rollback")]
    assert compare_checkpoints(*last).is_empty


def test_images_that_cannot_be_kept_cost_a_warning(
    tmp_path: Path, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    (batch,) = batches_of(1)
    keep_batches(tmp_path / "missing", 1, [batch], "test")
    assert "cannot keep the images of step 1" in caplog.text
    for step in range(5):
        keep_batches(tmp_path, step, [batch], "test")
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_rollbacks_come_to_an_end(tmp_path: Path, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydet.engine.loop.MAX_ROLLBACKS", 1)
    with pytest.raises(NonFiniteLossError, match=victim):
        run(tmp_path, "rollback")


POISONED = """
import sys
from dataclasses import replace
import torch
import raydet.data.loader as loader
from raydet.cli import main
from raydet.structures import Boxes

victim, transform = sys.argv[1], loader.train_transform

def poisoned(sample, **settings):
    sample = transform(sample, **settings)
    if sample.image_id != victim:
        return sample
    return replace(sample, target=Boxes(torch.full((1, 4), torch.nan), torch.zeros(1, dtype=torch.int64)))

loader.train_transform = poisoned
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("policy", "strategy"), [("skip", "fsdp"), ("rollback", "ddp")])
@pytest.mark.slow
def test_two_workers_pass_over_the_same_step(
    start: Start, tmp_path: Path, victim: str, policy: str, strategy: str
) -> None:
    """Whichever of them had the image."""
    settings = {
        "train.non_finite": policy,
        "train.epochs": 2,
        "train.eval_every": 2,
        "train.strategy": strategy,
    }
    config, run_dir = tmp_path / "config.json", tmp_path / "run"
    config.write_text(apply_overrides(EXPERIMENT, settings).to_json())
    train = ["train", "--config", str(config), "--run-dir", str(run_dir), "--workers", "0"]
    train += ["--tracking-uri", "none", "--checkpoint-steps", "1"]
    start([sys.executable, "-c", POISONED, victim, *train], workers=2)
    results = json.loads((run_dir / "final_results.json").read_text())
    assert results["skipped_steps"][0] == 1
    assert len(results["skipped_steps"]) == 2
    assert all(math.isfinite(row["loss"]) for row in results["history"])
    assert (run_dir / "training.log").read_text().count(f"because of {victim}") == 2
