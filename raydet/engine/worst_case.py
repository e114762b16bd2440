"""The worst batch first: what would end in out of memory after hours ends before step 1."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from raydet.config import DataConfig, Precision
from raydet.data.sources.base import Source
from raydet.data.transforms import eval_transform
from raydet.engine.step import accumulate_gradients, copied_buffers, restore_buffers
from raydet.parallel.collectives import World
from raydet.plan.sizes import in_words
from raydet.resilience.out_of_memory import during
from raydet.structures import Batch, collate

LONG_RUN_STEPS = 200
"""Runs of at least this many steps rehearse: there it costs less than a hundredth."""

logger = logging.getLogger("raydet")


def worst_batch(source: Source, indices: Sequence[int], data: DataConfig, *, size: int) -> Batch:
    """The training images with the most boxes, all of them kept, on the canvas."""
    num_boxes = {index: len(source.targets(index)[1]) for index in indices}
    worst = sorted(indices, key=lambda index: (-num_boxes[index], index))[:size]
    worst = (worst * size)[:size]  # a set smaller than a batch
    return collate([eval_transform(source.read(index), canvas_hw=data.canvas_hw) for index in worst])


def rehearse(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    state_copies: int,
    accumulation: int,
    world: World,
    precision: Precision,
) -> None:
    """Forward and backward over the worst batch, as in a step, with nothing learnt and nothing remembered.

    Args:
        model, optimizer: as they will train.
        batch: the same on every rank.
        state_copies: copies of the parameters that the optimizer will keep from the first step on.
        accumulation: micro-batches per step; two are enough to see the gradients wait.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    is_cuda = world.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(world.device)
    statistics = copied_buffers(model)
    state_to_come = [] if optimizer.state else [p.detach() for p in model.parameters()] * state_copies
    with during("rehearsal", batch.image_ids, world.device):
        ballast = [torch.empty_like(parameter) for parameter in state_to_come]
    model.train()
    accumulate_gradients(
        model, [batch] * min(accumulation, 2), seed=0, step=0, world=world, precision=precision
    )
    optimizer.zero_grad(set_to_none=True)
    del ballast
    restore_buffers(model, statistics)
    if world.is_main:
        peak = f", at most {in_words(torch.cuda.max_memory_allocated(world.device))} live" if is_cuda else ""
        logger.info(
            "rehearsed the worst batch: up to %d boxes per image (%s ...)%s",
            int(batch.counts.max()),
            batch.image_ids[0],
            peak,
        )
