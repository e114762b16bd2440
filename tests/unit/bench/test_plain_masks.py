"""Models for masks against the plain implementation: losses and every gradient, in fp64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from raydet.bench.plain_masks import PlainSegmenter
from raydet.bench.train_step import agreement_with_plain, random_batch
from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError
from raydet.models.build import build_model
from raydet.models.heads.masks.base import Decoder
from raydet.recipes import recipe

RESNET = {
    "model.backbone": {"kind": "timm", "name": "test_resnet", "drop_path_rate": 0.2},
    "model.aux_modalities": [],
    "model.fusion": {"kind": "identity"},
    "model.elsewhere": {"kind": "identity"},
}
TRIPLET = {"kind": "hierarchical", "depth": 1, "triplet": {"margin": 0.5}}
HEADS = {
    "aspp": {"channels": 16, "low_channels": 8, "dilations": [1, 2, 4, 6]},
    "segformer": {"channels": 16},
    "ultrafast_segformer": {"channels": 16},
    "extremely_fast_segformer": {"channels": 16},
    "deeplabv3": {"channels": 16, "dropout": 0.2},
    "deeplabv3_plus": {"channels": 16},
    "fcn": {},
}
LOSSES: dict[str, dict[str, object]] = {
    "cross-entropy": {"kind": "cross_entropy"},
    "focal": {"kind": "cross_entropy", "focal_gamma": 0.5},
    "two levels": {"kind": "hierarchical", "depth": 1},
    "without the tree": {"kind": "hierarchical", "weight": 0.0},
    "hieraseg": {"kind": "hierarchical", "focal_gamma": 2.0, "rmi": {"weight": 0.5}},
    "seghiero": {"kind": "hierarchical", "form": "seghiero", "rmi": {"form": "seghiero"}},
}


def experiment_of(head: str, loss: dict[str, object], **overrides: object) -> Experiment:
    """Two streams with an auxiliary head and, if the loss has triplets, a projection; every layer draws."""
    settings = {"kind": head, "loss": loss, "auxiliary_weight": 0.4, "projection": 8, "dropout": 0.1}
    backbone = {"kind": "mit", "variant": "nano", "drop_path_rate": 0.4}
    base = {"data.canvas_hw": [96, 64], "model.backbone": backbone}
    return apply_overrides(
        recipe("seg_demo"), {**base, "model.head": {**settings, **HEADS[head]}, **overrides}
    )


def check_agreement(experiment: Experiment, *, gradient: float = 1e-9) -> None:
    model = build_model(experiment)
    model.set_progress(1.0)
    batch = random_batch(experiment, 2, 0)
    losses = PlainSegmenter(model, experiment)(batch).losses
    assert tuple(losses) == model.loss_names
    assert all(loss.item() != 0 for loss in losses.values())
    found = agreement_with_plain(model, experiment, batch)
    assert found.loss <= 1e-9
    assert found.gradient <= gradient
    assert found.fp32_loss <= 1e-4


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str) -> None:
    check_agreement(experiment_of(head, TRIPLET))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss: str) -> None:
    # See `plain_losses.rmi`.
    check_agreement(experiment_of("segformer", LOSSES[loss]), gradient=1e-6 if loss == "seghiero" else 1e-9)


def test_a_stream_of_timm_with_aspp() -> None:
    check_agreement(experiment_of("aspp", TRIPLET, **RESNET))


def test_a_head_without_a_plain_form_is_refused() -> None:
    class Own(Decoder):
        def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
            return maps_BCHW[0]

    experiment = experiment_of("fcn", LOSSES["cross-entropy"])
    model = build_model(experiment)
    model.head.decoder = Own()
    with pytest.raises(ConfigError, match="expected a head that has a plain form, got Own; write it in"):
        PlainSegmenter(model, experiment)(random_batch(experiment, 1, 0))


def test_random_masks_have_every_class_and_ignored_pixels() -> None:
    experiment = recipe("seg_demo")
    ids, again = (random_batch(experiment, 2, 0).ids_BHW for _ in range(2))
    assert torch.equal(ids, again)
    assert ids.unique().tolist() == [*range(experiment.num_classes), 255]
    assert 0.08 < (ids == 255).float().mean().item() < 0.12
