"""The plan for backbones from timm, whose blocks differ within a stage, against real steps."""

from __future__ import annotations

from typing import Any

import pytest

from raydet.config import Experiment, apply_overrides
from raydet.models.build import describe_parameters
from raydet.plan.counts import PARAMETER_BYTES, parts_of
from raydet.plan.fit import fit_table
from raydet.plan.ledger import ledger
from raydet.plan.sizes import GIB
from raydet.recipes import recipe
from tests.unit.plan.real import experiment, peak_bytes

DEMO = recipe("demo")


def timm_run(name: str, mode: str = "none", **overrides: Any) -> Experiment:
    changes = {
        "model.backbone": {"kind": "timm", "name": name},
        "model.fusion.kind": "add",
        "train.activation_checkpointing": mode,
        "data.canvas_hw": [96, 128],
        "train.global_batch": 2,
        **overrides,
    }
    return apply_overrides(experiment("b0"), changes)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("test_resnet", "none"), ("test_convnext", "block"), ("tf_efficientnet_lite0", "block")],
)
def test_the_peak_is_the_real_one(name: str, mode: str) -> None:
    run = timm_run(name, mode, **{"model.head.box_hidden": 64})
    planned = ledger(run, world_size=1, strategy="single", micro_batch=2, num_objects=3, device_type="cpu")
    assert planned.allocated_bytes == pytest.approx(peak_bytes(run, 2), rel=0.02)


def test_every_block_is_a_part() -> None:
    run = timm_run("resnet50")
    parts = parts_of(run)
    names = [part.scope for part in parts]
    assert [name for name in names if name.startswith("stage 3 aux")] == [
        "stage 3 aux",
        *(f"stage 3 aux, block {number}" for number in range(1, 7)),
    ]
    total = describe_parameters(run)["total"]
    assert sum(part.whole_bytes for part in parts) == PARAMETER_BYTES * total


def test_the_table_starts_with_the_experiments_own_backbone() -> None:
    run = apply_overrides(DEMO, {"model.backbone": {"kind": "timm", "name": "test_resnet"}})
    table = fit_table(run, world_size=1, memory_bytes=80 * GIB, backbones=("nano",))
    assert [name for name, _ in table] == ["test_resnet"] * 2 + ["mit_nano"] * 2
    # The other rows have a MiT's defaults.
    assert table[2:] == fit_table(
        apply_overrides(DEMO, {"model.backbone.drop_path_rate": 0.1}),
        world_size=1,
        memory_bytes=80 * GIB,
        backbones=("nano",),
    )
