"""The plan for heads for masks against real training steps on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError
from raydet.models.heads.masks.base import DECODER
from raydet.plan.counts import canonical
from raydet.plan.fit import largest_micro_batch, with_train
from raydet.plan.flops import forward_flops
from raydet.plan.ledger import Ledger, ledger
from raydet.plan.sizes import GIB
from raydet.recipes import recipe
from raydet.structures import Batch, MaskBatch
from tests.unit.plan import real

LEVELS = [{"name": "group", "groups": ["a", "b"], "parents": [0, 0, 1]}]
TREE = {"kind": "hierarchical", "rmi": {}, "triplet": {}}


def run_of(head: dict[str, Any], backbone: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    overrides = {
        "data.classes": ["x", "y", "z"],
        "data.canvas_hw": [128, 160],
        "task": {"kind": "segmentation", "levels": LEVELS},
        "model.backbone": backbone or {"kind": "mit", "variant": "nano"},
        "model.neck": {"kind": "none"},
        "model.head": head,
        # One stream: autograd's hooks would see what a fused map saves that no head reads, and that is freed at once.
        "model.fusion_stages": [],
        "model.elsewhere": {"kind": "identity"},
        "train.activation_checkpointing": "none",
        **changes,
    }
    return apply_overrides(recipe("demo"), overrides)


def planned(run: Experiment, images: int) -> Ledger:
    return ledger(
        with_train(run, global_batch=images),
        world_size=1,
        strategy="single",
        micro_batch=images,
        device_type="cpu",
    )


@pytest.fixture(autouse=True)
def batches_with_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real steps get masks in place of boxes."""
    with_boxes = real.batch_of

    def with_masks(run: Experiment, images: int) -> Batch:
        batch = with_boxes(run, images)
        ids_BHW = torch.randint(0, 3, (images, *run.data.canvas_hw), dtype=torch.uint8)
        return Batch(batch.modalities, batch.valid_hw, batch.source_hw, MaskBatch(ids_BHW), batch.image_ids)

    monkeypatch.setattr(real, "batch_of", with_masks)


HEADS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"kind": "segformer", "channels": 64, "auxiliary_weight": 0.4}, None),
    (
        {"kind": "aspp", "channels": 64, "projection": 32, "loss": TREE},
        {"kind": "timm", "name": "test_resnet", "output_stride": 8},
    ),
]


@pytest.mark.parametrize(("head", "backbone"), HEADS, ids=["segformer", "aspp"])
def test_saved_activations(head: dict[str, Any], backbone: dict[str, Any] | None) -> None:
    run = run_of(head, backbone)
    for images in (2, 3):
        assert planned(run, images).activation_bytes == pytest.approx(real.saved_bytes(run, images), rel=0.05)


@pytest.mark.parametrize(("head", "backbone"), HEADS, ids=["segformer", "aspp"])
def test_the_peak_of_a_step(head: dict[str, Any], backbone: dict[str, Any] | None) -> None:
    run = run_of(head, backbone)
    assert planned(run, 2).allocated_bytes == pytest.approx(real.peak_bytes(run, 2), rel=0.05)


def test_the_decoder_has_a_row() -> None:
    assert planned(run_of({"kind": "segformer"}), 2).bytes_of(DECODER) > 0


def test_the_cache_tells_trees_apart() -> None:
    run = run_of({"kind": "fcn", "loss": {"kind": "hierarchical"}})
    assert canonical(run).task == run.task
    metric = apply_overrides(run, {"task.metric": "val_loss", "task.boundary_px": 3})
    assert canonical(metric) == canonical(run)


def test_micro_batches_of_one_image_are_not_planned_where_they_cannot_be_trained() -> None:
    run = with_train(run_of({"kind": "aspp", "channels": 16}), global_batch=6)
    with pytest.raises(ConfigError, match=r"expected a micro-batch of at least 2 images, .* got 1"):
        ledger(run, world_size=1, strategy="single", micro_batch=1)
    with pytest.raises(ConfigError, match=r"at least 2 images"):
        largest_micro_batch(run, world_size=6, strategy="ddp", memory_bytes=80 * GIB)
    assert largest_micro_batch(run, world_size=1, strategy="single", memory_bytes=1) is None
    synced = with_train(run, sync_batch_norm=True)
    assert largest_micro_batch(synced, world_size=6, strategy="ddp", memory_bytes=80 * GIB) == 1


def test_operations_of_an_fcn() -> None:
    """A 3x3 convolution to a quarter of the channels, and the classifier, on the last map of 4 x 5 cells."""
    counted = forward_flops(run_of({"kind": "fcn"}))
    assert counted[DECODER] == 2 * 4 * 5 * (9 * 128 * 32 + 32 * 3)
    assert set(counted) == {"total", "encoder", DECODER}
