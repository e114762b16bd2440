"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from raydet.config import Precision
from raydet.models.carry import carry_of, joined
from raydet.parallel.collectives import World
from raydet.parallel.parallelize import gradient_sync, unwrapped
from raydet.parallel.precision import autocast
from raydet.resilience.out_of_memory import during
from raydet.structures import Batch, Carry


class StepResult(NamedTuple):
    """The outcome of an optimizer step."""

    losses: dict[str, Tensor]
    """This rank's mean of each loss, float32 on the model's device."""
    is_updated: bool
    """False if the gradient was not finite and was not used."""
    carry: Carry
    """What the model remembers of this rank's lanes; as before if there was no update."""


def train_step(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    clip_norm: float | None,
    clip_value: float | None = None,
    seed: int,
    step: int,
    world: World,
    precision: Precision,
    carry: Carry | None = None,
    skip_non_finite: bool = False,
) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one update.

    Unless `skip_non_finite` is set nothing is copied to the host, so a GPU is not waited for.

    Args:
        carry: what the model remembers of this rank's lanes from the step before.
        clip_norm: largest L2 norm of the whole gradient; None does not clip.
        clip_value: largest absolute value in the gradient, cut before the norm is taken; None does not clip.
        skip_non_finite: leave the update out where the gradient is not finite; a GPU is waited for to tell.

    Raises:
        OutOfMemoryError: in which phase, with which images.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    buffers = copied_buffers(model) if skip_non_finite else []
    losses, new_carry = accumulate_gradients(
        model, micro_batches, seed=seed, step=step, world=world, precision=precision, carry=carry
    )
    with during("update", images_of(micro_batches), world.device):
        is_finite = True
        if clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip_value)
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
    return StepResult(losses, is_finite, new_carry if is_finite else carry or {})


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    world: World,
    precision: Precision,
    carry: Carry | None = None,
) -> tuple[dict[str, Tensor], Carry]:
    """The gradients of the mean loss, over all micro-batches of all workers.

    Random choices (drop-path, anchor sampling) depend on (seed, step, slot) alone, where a slot is one micro-batch
    of the global batch: one worker with accumulation 2 and two workers without see the same ones.

    Returns:
        This rank's losses and carry, see `StepResult`.
    """
    total, carries = torch.zeros((), device=world.device), []
    first_names: tuple[str, ...] = unwrapped(model).loss_names  # type: ignore[assignment]
    for micro, batch in enumerate(micro_batches):
        seed_slot(seed, step, slot=world.rank * len(micro_batches) + micro)
        with gradient_sync(model, enabled=micro == len(micro_batches) - 1):
            with during("forward", batch.image_ids, world.device), autocast(precision, world.device):
                rows = carry_of(carry or {}, micro, batch.is_first)
                losses, _, new_rows = model(batch.to(world.device), rows, want="losses")
            carries.append(new_rows)
            names = (*first_names, *(name for name in losses if name not in first_names))
            values = torch.stack([losses[name].float() for name in names])
            with during("backward", batch.image_ids, world.device):
                (values.sum() / len(micro_batches)).backward()
        total = total + values.detach() / len(micro_batches)
    return dict(zip(names, total.unbind(), strict=True)), joined(carries)


def seed_slot(seed: int, step: int, *, slot: int) -> None:
    """Seed torch for one micro-batch; a resume at any step needs no stored generator state."""
    # Odd multipliers keep neighbouring (seed, step, slot) apart within 63 bits.
    torch.manual_seed((seed * 0x9E3779B1 + step * 0x85EBCA77 + slot * 0xC2B2AE3D) % 2**63)


def images_of(micro_batches: Sequence[Batch]) -> list[str]:
    """Their images' names in order."""
    return [image_id for batch in micro_batches for image_id in batch.image_ids]


def copied_buffers(model: nn.Module) -> list[Tensor]:
    """What `restore_buffers` takes: the statistics of batch norms as they are."""
    return [buffer.clone() for buffer in model.buffers()]


def restore_buffers(model: nn.Module, before: Sequence[Tensor]) -> None:
    """Forget what forward passes have added to the statistics since."""
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
