"""The same run on other layouts: what the number of workers must not change."""

from __future__ import annotations

import csv
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raydet.checkpoint.diff import compare_checkpoints
from raydet.checkpoint.load import export_weights, stored_tensors
from raydet.config import Experiment, apply_overrides
from raydet.metrics.names import METRIC_NAMES
from raydet.metrics.records import read_records, score
from raydet.recipes import recipe
from tests.numerics.conftest import Launch, Start, launch_training

pytestmark = pytest.mark.slow

STEPS = 20
MICRO: dict[str, object] = {"train.micro_batch": 2}


def experiment(**overrides: object) -> Experiment:
    """20 steps of 4 images; drop-path on, so that random choices are compared too."""
    return apply_overrides(
        recipe("demo"),
        {
            "data.source.num_sequences": 10,
            "data.source.frames_per_sequence": 2,
            "model.backbone.drop_path_rate": 0.1,
            "train.global_batch": 4,
            "train.epochs": 5,
            "train.eval_every": 5,
            # Where a gradient is nearly zero, Adam turns rounding errors into whole steps.
            "optim": {"kind": "sgd", "lr": 1e-3, "clip_norm": 1.0, "ema_decay": 0.9},
            **overrides,
        },
    )


def losses(run_dir: Path, column: str = "loss") -> list[float]:
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


LAYOUTS: dict[str, tuple[int, dict[str, object]]] = {
    "block": (1, {"train.activation_checkpointing": "block"}),
    "selective": (1, {"train.activation_checkpointing": "selective"}),
    "ddp": (2, {}),
    "ddp-block": (2, {"train.activation_checkpointing": "block"}),
    "fsdp": (2, {"train.strategy": "fsdp"}),
    "fsdp-block": (2, {"train.strategy": "fsdp", "train.activation_checkpointing": "block"}),
    "hsdp-2x1": (2, {"train.strategy": "hsdp", "train.shard_ranks": 1}),
}
"""Workers and settings that must not change the losses of one worker that accumulates."""

COMPILED_LAYOUTS: dict[str, tuple[int, dict[str, object]]] = {
    "single": (1, {}),
    "fsdp-block": (2, {"train.strategy": "fsdp", "train.activation_checkpointing": "block"}),
}


Runs = Callable[[str], Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The run directory of a layout, or of a worker "alone"; each is trained once."""
    directory = tmp_path_factory.mktemp("layouts")

    @functools.cache
    def run(name: str) -> Path:
        workers, settings = LAYOUTS.get(name, (1, {}))
        launch_training(experiment(**MICRO, **settings), workers=workers, directory=directory, name=name)
        return directory / name

    return run


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_do_not_change_the_losses(name: str, runs: Runs) -> None:
    assert len(losses(runs("alone"))) == STEPS
    assert losses(runs(name)) == pytest.approx(losses(runs("alone")), rel=1e-5)


def assert_same_statistics(one: Path, other: Path) -> None:
    checkpoints = [max(run.glob("checkpoints/epoch_*")) for run in (one, other)]
    found = compare_checkpoints(*checkpoints)
    assert not found.only_in_first
    assert not found.only_in_second
    statistics = [each for each in found.different if "running" in each.name]
    assert all(each.max_abs < 1e-5 for each in statistics), statistics


def test_statistics_are_those_of_all_workers(runs: Runs) -> None:
    """Copies of the model and shards of it remember the same."""
    assert_same_statistics(runs("ddp"), runs("fsdp"))


def test_averages_of_the_weights_are_alike(runs: Runs) -> None:
    one = max(runs("alone").glob("checkpoints/epoch_*"))
    assert any(name.endswith(".average") for name in stored_tensors(one))
    for layout in ("ddp", "fsdp"):
        found = compare_checkpoints(one, max(runs(layout).glob("checkpoints/epoch_*")))
        averages = [each for each in found.different if each.name.endswith(".average")]
        assert not found.only_in_first
        assert all(each.max_abs < 1e-6 for each in averages), averages


def test_batch_norm_over_all_workers(train: Launch, tmp_path: Path, runs: Runs) -> None:
    for strategy in ("ddp", "fsdp"):
        settings = {"train.strategy": strategy, "train.sync_batch_norm": True, "train.epochs": 2}
        train(experiment(**MICRO, **settings), workers=2, name=strategy)
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-5)
    assert_same_statistics(tmp_path / "fsdp", tmp_path / "ddp")
    assert losses(tmp_path / "ddp") != pytest.approx(losses(runs("ddp"))[:8], rel=1e-3)


def test_sharded_gradients_accumulate(train: Launch, tmp_path: Path) -> None:
    """Two micro-batches per worker and step: gradients stay whole until the last one.

    Momenta, not losses, are compared: four gradients are added up in another order, and at the first weights, where
    many proposals score alike, that is enough to sample others.
    """
    settings: dict[str, object] = {**MICRO, "train.global_batch": 8, "train.epochs": 1, "train.eval_every": 1}
    train(experiment(**settings, **{"train.strategy": "fsdp"}), workers=2, name="pair")
    train(experiment(**settings), workers=1, name="alone")
    found = compare_checkpoints(
        *(tmp_path / name / "checkpoints" / "epoch_0001" for name in ("pair", "alone"))
    )
    momenta = [each for each in found.different if "momentum" in each.name]
    assert found.num_equal < len(momenta), "nothing is compared if nothing is rounded"
    assert all(each.max_abs < 1e-6 for each in momenta), momenta
    assert losses(tmp_path / "pair") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


@pytest.mark.compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU requires a C++ compiler")
@pytest.mark.parametrize("name", COMPILED_LAYOUTS)
def test_compiled_layouts_do_not_change_the_losses(
    name: str, train: Launch, tmp_path: Path, runs: Runs
) -> None:
    workers, settings = COMPILED_LAYOUTS[name]
    train(experiment(**MICRO, **settings, **{"train.compile": True}), workers=workers)
    assert losses(tmp_path / "run") == pytest.approx(losses(runs("alone")), rel=1e-5)


EVALUATE = """
import json, sys
from pathlib import Path
import torch
from raydet.config import Experiment
from raydet.data.build import open_source
from raydet.data.split import split_indices
from raydet.models.build import build_model
from safetensors.torch import load_file
from raydet.parallel.collectives import world_from_environment
from raydet.engine.evaluator import Evaluator
from raydet.tasks.build import build_task

run_dir = Path(sys.argv[1])
experiment = Experiment.from_json((run_dir / "config.json").read_text(), where="test")
world = world_from_environment()
source = open_source(experiment.data)
val = split_indices(source, experiment.data.split)["val"]
detector = build_model(experiment)
detector.load_state_dict(load_file(run_dir / "weights.safetensors"))
print(json.dumps(Evaluator(build_task(experiment), experiment, source, val, world).evaluate(detector)[0].metrics))
"""


def test_an_evaluation_is_exact_at_any_worker_count(train: Launch, start: Start, tmp_path: Path) -> None:
    learning = {
        "data.source.num_sequences": 20,
        "train.epochs": 8,
        "train.eval_every": 8,
        "optim": {"kind": "adamw", "lr": 4e-3, "ema_decay": 0.9},
    }
    final = train(experiment(**learning), workers=1)["final"]
    assert final["mAP_50"] > 0.1, "nothing is compared if nothing is found"
    records = read_records(tmp_path / "run")
    assert score(records, "mAP") == pytest.approx(final["mAP"], abs=1e-12)
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch_0008"
    export_weights(checkpoint, tmp_path / "run" / "weights.safetensors", is_averaged=True)
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
        assert "images sequence_" in output


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        pytest.param("ddp", {}, marks=pytest.mark.exhaustive),
        ("fsdp-block", {"train.strategy": "fsdp", "train.activation_checkpointing": "block"}),
    ],
)
def test_losses_of_a_fusion_are_those_of_one_worker(
    layout: str, settings: dict[str, object], train: Launch, tmp_path: Path
) -> None:
    """Guided attention in front of a gated block with learnt weights: each is a unit that is wrapped as a whole."""
    fusion = {
        "kind": "gaff",
        "guide_intra": True,
        "guide_inter": True,
        "gated": True,
        "merge_weights": "both",
    }
    common = {**MICRO, "model.fusion": fusion, "train.epochs": 1, "train.eval_every": 1}
    train(experiment(**common), workers=1, name="alone")
    train(experiment(**common, **settings), workers=2, name=layout)
    for column in ("loss", "loss_guide_intra", "loss_guide_inter"):
        expected = losses(tmp_path / "alone", column)
        assert len(expected) == 4
        assert losses(tmp_path / layout, column) == pytest.approx(expected, rel=1e-5)
