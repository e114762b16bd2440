"""One optimiser step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from raydet.parallel.collectives import World
from raydet.parallel.parallelize import gradient_sync
from raydet.parallel.precision import autocast
from raydet.structures import Batch

LOSS_NAMES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


def train_step(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    clip_norm: float | None,
    seed: int,
    step: int,
    world: World,
    precision: Literal["fp32", "bf16"],
) -> Tensor:
    """Forward and backward over this rank's micro-batches, then one update.

    Random choices (drop-path, anchor sampling) depend on (seed, step, slot) alone, where a slot is one micro-batch
    of the global batch: one worker with accumulation 2 and two workers without see the same ones.

    Args:
        lr: learning rate of this step.
        clip_norm: largest L2 norm of the whole gradient; None does not clip.

    Returns:
        float32 [4] on the model's device: this rank's mean of each loss in `LOSS_NAMES`. Nothing is copied to the
        host, so a GPU is not waited for.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    total = torch.zeros(len(LOSS_NAMES), device=world.device)
    for micro, batch in enumerate(micro_batches):
        seed_slot(seed, step, slot=world.rank * len(micro_batches) + micro)
        is_last = micro == len(micro_batches) - 1
        with gradient_sync(model, enabled=is_last):
            with autocast(precision, world.device):
                losses = model(batch.to(world.device))
            values = torch.stack([losses[name].float() for name in LOSS_NAMES])
            (values.sum() / len(micro_batches)).backward()
        total += values.detach() / len(micro_batches)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def seed_slot(seed: int, step: int, *, slot: int) -> None:
    """Seed torch for one micro-batch; a resume at any step needs no stored generator state."""
    # Odd multipliers keep neighbouring (seed, step, slot) apart within 63 bits.
    torch.manual_seed((seed * 0x9E3779B1 + step * 0x85EBCA77 + slot * 0xC2B2AE3D) % 2**63)
