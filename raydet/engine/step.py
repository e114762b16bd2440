"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from raydet.config import Precision
from raydet.parallel.collectives import World
from raydet.parallel.parallelize import gradient_sync
from raydet.parallel.precision import autocast
from raydet.resilience.out_of_memory import during
from raydet.structures import Batch

HEAD_LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
"""The first columns; a fusion's own losses come after them."""


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
    precision: Precision,
    skip_non_finite: bool = False,
) -> tuple[dict[str, Tensor], bool]:
    """Forward and backward over this rank's micro-batches, then one update.

    Args:
        lr: learning rate of this step.
        clip_norm: largest L2 norm of the whole gradient; None does not clip.
        skip_non_finite: leave the update out where the gradient is not finite; a GPU is waited for to tell.

    Returns:
        This rank's mean of each loss by name, float32 on the model's device, and whether there was an update. But
        for `skip_non_finite` nothing is copied to the host, so a GPU is not waited for.

    Raises:
        OutOfMemoryError: in which phase, with which images.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    buffers = copied_buffers(model) if skip_non_finite else []
    losses = accumulate_gradients(
        model, micro_batches, seed=seed, step=step, world=world, precision=precision
    )
    with during("update", images_of(micro_batches), world.device):
        is_finite = True
        if clip_norm is not None or skip_non_finite:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm or math.inf)
            # The gradient is everyone's by now: all ranks come to the same answer.
            if skip_non_finite:
                is_finite = math.isfinite((norm.full_tensor() if isinstance(norm, DTensor) else norm).item())
        if is_finite:
            optimizer.step()
        else:
            restore_buffers(model, buffers)
    optimizer.zero_grad(set_to_none=True)
    return losses, is_finite


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    world: World,
    precision: Precision,
) -> dict[str, Tensor]:
    """The gradients of the mean loss, over all micro-batches of all workers.

    Random choices (drop-path, anchor sampling) depend on (seed, step, slot) alone, where a slot is one micro-batch
    of the global batch: one worker with accumulation 2 and two workers without see the same ones.

    Returns:
        This rank's losses: see `train_step`.
    """
    total, names = torch.zeros((), device=world.device), HEAD_LOSSES
    for micro, batch in enumerate(micro_batches):
        seed_slot(seed, step, slot=world.rank * len(micro_batches) + micro)
        is_last = micro == len(micro_batches) - 1
        with gradient_sync(model, enabled=is_last):
            with (
                during("forward", batch.image_ids, world.device),
                autocast(precision, world.device),
            ):
                losses = model(batch.to(world.device))
            names = (*HEAD_LOSSES, *(name for name in losses if name not in HEAD_LOSSES))
            values = torch.stack([losses[name].float() for name in names])
            with during("backward", batch.image_ids, world.device):
                (values.sum() / len(micro_batches)).backward()
        total = total + values.detach() / len(micro_batches)
    return dict(zip(names, total.unbind(), strict=True))


def seed_slot(seed: int, step: int, *, slot: int) -> None:
    """Seed torch for one micro-batch; a resume at any step needs no stored generator state."""
    # Odd multipliers keep neighbouring (seed, step, slot) apart within 63 bits.
    torch.manual_seed((seed * 0x9E3779B1 + step * 0x85EBCA77 + slot * 0xC2B2AE3D) % 2**63)


def images_of(micro_batches: Sequence[Batch]) -> list[str]:
    """Their images' names in order."""
    return [image_id for batch in micro_batches for image_id in batch.image_ids]


def copied_buffers(model: nn.Module) -> list[Tensor]:
    """What `restore_buffers` wants: the statistics of batch norms as they are."""
    return [buffer.clone() for buffer in model.buffers()]


def restore_buffers(model: nn.Module, before: Sequence[Tensor]) -> None:
    """Forget what forward passes have added to the statistics since."""
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
