"""Published weights at the start of a run: on every rank the same, told in model_info, and not asked for again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file, save_file

from raydet.config import Experiment, apply_overrides
from raydet.engine.process import run_process
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.results import EpochRow
from raydet.runs.run_dir import claim_run_directory
from tests.numerics.conftest import Start

pytestmark = pytest.mark.slow

MODEL = "test_resnet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "published.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


def starting_from(weights: Path, *, rate: float = 0.0, **overrides: Any) -> Experiment:
    backbone = {"kind": "timm", "name": MODEL, "drop_path_rate": rate, "pretrained": {"path": str(weights)}}
    return apply_overrides(
        recipe("demo"),
        {
            "data.source.num_sequences": 6,
            "data.source.frames_per_sequence": 2,
            "data.split.num_blocks": 3,
            "data.canvas_hw": [64, 64],
            "model.backbone": backbone,
            "model.fusion.kind": "add",
            "train.global_batch": 4,
            "train.epochs": 2,
            **overrides,
        },
    )


class PowerCutError(Exception):
    """The power fails."""


def run(experiment: Experiment, run_dir: Path, *, is_cut: bool = False) -> dict[str, Any]:
    claim_run_directory(run_dir, experiment)

    def publish(_: EpochRow) -> None:
        if is_cut:
            raise PowerCutError

    return run_process(experiment, run_dir=run_dir, world=World(), publish=publish).as_json()


def told(run_dir: Path) -> Any:
    return json.loads((run_dir / "model_info.json").read_text())["pretrained"]


def test_a_run_goes_on_without_the_file(weights: Path, tmp_path: Path) -> None:
    experiment, cut = starting_from(weights), tmp_path / "cut"
    straight = run(experiment, tmp_path / "straight")
    with pytest.raises(PowerCutError):
        run(experiment, cut, is_cut=True)
    before = told(cut)
    assert before["path"] == str(weights)
    assert before["unused"] == ["fc.bias", "fc.weight"]
    weights.unlink()
    results = run(experiment, cut)
    assert told(cut) == before
    assert [row["loss"] for row in results["history"]] == [row["loss"] for row in straight["history"]]
    lines = [line for line in (cut / "training.log").read_text().splitlines() if "pretrained weights" in line]
    assert [line.split(" INFO ")[1].split(":")[0] for line in lines] == [
        "pretrained weights",
        "licence of the pretrained weights",
    ]


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError
from raydet.parallel.collectives import world_from_environment
from raydet.parallel.parallelize import parallelize
from raydet.engine.pretrained import start_from_pretrained
from raydet.engine.process import initial_model
from raydet.tasks.build import build_task
from tests.unit.plan.real import batch_of

world = world_from_environment()
experiment = Experiment.from_json(Path(sys.argv[1]).read_text(), where="test")
detector = initial_model(experiment, build_task(experiment), world)
nowhere = apply_overrides(experiment, {"model.backbone.pretrained.path": "nowhere.safetensors"})
try:
    start_from_pretrained(detector, nowhere, world, run_dir=Path(), is_resumed=False)
except ConfigError as error:
    problem = str(error)
info = start_from_pretrained(detector, experiment, world, run_dir=Path(), is_resumed=False)
model = parallelize(detector, world, units=detector.units(), train=experiment.train).train()
torch.manual_seed(0)
sum(model(batch_of(experiment, 2)).losses.values()).backward()
parameters = dict(detector.named_parameters())
whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in parameters.items()}
print(json.dumps({
    "problem": problem,
    "loaded": info and info["loaded"],
    "sum": sum(float(p.detach().double().abs().sum()) for p in whole.values()),
    "first": whole["encoder.rgb_stages.0.layers.conv1.0.weight"].flatten()[:5].tolist(),
    "without": [n for n, p in parameters.items() if p.grad is None],
}))
"""


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.exhaustive), "fsdp"])
def test_every_rank_gets_them_or_hears_why_not(
    strategy: str, weights: Path, tmp_path: Path, start: Start
) -> None:
    experiment = starting_from(
        weights, rate=0.2, **{"train.strategy": strategy, "train.activation_checkpointing": "block"}
    )
    config = tmp_path / "config.json"
    config.write_text(experiment.to_json())
    first, second = (
        json.loads(text.splitlines()[-1])
        for text in start([sys.executable, "-W", "ignore", "-c", SCRIPT, str(config)], workers=2)
    )
    assert (first.pop("loaded"), second.pop("loaded")) == (180, None)
    assert first == second
    assert "No such file or directory" in first["problem"]
    assert first["without"] == []
    assert first["first"] == load_file(weights)["conv1.0.weight"].flatten()[:5].tolist()
