"""bf16 on real pairs: the losses are those of fp32, and they stay finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydet.config import apply_overrides
from raydet.data.build import open_source
from raydet.data.loader import TrainLoader
from raydet.data.split import split_indices
from raydet.engine.optim import build_optimizer
from raydet.engine.step import seed_slot, train_step
from raydet.models.build import build_model
from raydet.parallel.collectives import World
from tests.integration.test_real_pairs import base

STEPS = 200
LR = 1e-3


@pytest.mark.exhaustive
@pytest.mark.bf16
def test_bf16_follows_fp32_for_200_steps(shared_data: Path) -> None:
    """At every step the same images and the same weights in both precisions, trained on in bf16.

    Single steps may differ by more: a proposal more or less is sampled. Two separate runs would drift apart for the
    same reason, and tell nothing.
    """
    experiment = apply_overrides(
        base(shared_data), {"data.canvas_hw": [160, 224], "train.global_batch": 2, "train.precision": "bf16"}
    )
    source = open_source(experiment.data)
    indices = split_indices(source, experiment.data.split)["train"]
    loader = TrainLoader(
        source,
        indices,
        data=experiment.data,
        seed=0,
        global_batch=2,
        micro_batch=2,
        accumulation=1,
        rank=0,
        world_size=1,
    )
    torch.manual_seed(0)
    detector = build_model(experiment).train()
    optimizer = build_optimizer(experiment.optim, detector.parameters())
    losses = torch.zeros(2, STEPS, len(detector.loss_names))
    for step in range(STEPS):
        epoch, position = divmod(step, loader.steps_per_epoch)
        (batch,) = next(loader.epoch(epoch, first_step=position))
        seed_slot(0, step, slot=0)
        with torch.no_grad():
            fp32 = detector(batch).losses
        losses[0, step] = torch.stack([fp32[name] for name in detector.loss_names])
        bf16, *_ = train_step(
            detector,
            [batch],
            optimizer,
            lr=LR,
            clip_norm=1.0,
            seed=0,
            step=step,
            world=World(),
            precision="bf16",
        )
        losses[1, step] = torch.stack([bf16[name] for name in detector.loss_names])
    assert torch.isfinite(losses).all()
    fp32_mean, bf16_mean = losses.sum(dim=2).mean(dim=1).tolist()
    assert bf16_mean == pytest.approx(fp32_mean, rel=0.02)
    start, end = losses[1].sum(dim=1)[:20].mean(), losses[1].sum(dim=1)[-20:].mean()
    assert end < 0.7 * start, "nothing is compared if nothing is learnt"
