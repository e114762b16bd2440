"""A dry run of the worst batch: what would run out of memory after hours does so before step 1."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from raydet.config import DataConfig, Experiment, Precision
from raydet.data.loader import TrainLoader
from raydet.data.sources.base import Source
from raydet.data.transforms import eval_transform
from raydet.engine.state import TrainState
from raydet.engine.step import accumulate_gradients, copied_buffers, restore_buffers
from raydet.parallel.collectives import World
from raydet.plan.counts import state_copies
from raydet.plan.sizes import format_bytes
from raydet.resilience.out_of_memory import during
from raydet.structures import Batch, collate
from raydet.tasks.base import Task

LONG_RUN_STEPS = 200
"""Runs of at least this many steps begin with a dry run: it costs less than a hundredth of them."""

logger = logging.getLogger("raydet")


def dry_run_if_long(
    experiment: Experiment,
    task: Task,
    state: TrainState,
    source: Source,
    train_indices: Sequence[int],
    loader: TrainLoader,
    world: World,
) -> None:
    """A dry run of the worst batch, if the run is so long that it costs little.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    if experiment.train.epochs * loader.steps_per_epoch < LONG_RUN_STEPS:
        return
    dry_run(
        state.model,
        state.optimizer,
        worst_batch(
            task,
            source,
            train_indices,
            experiment.data,
            size=loader.micro_batch * experiment.data.clip_frames,
        ),
        state_copies=state_copies(experiment.optim),
        accumulation=loader.accumulation,
        world=world,
        precision=experiment.train.precision,
    )


def worst_batch(task: Task, source: Source, indices: Sequence[int], data: DataConfig, *, size: int) -> Batch:
    """The training images of the largest cost (`Task.cost`), with all of their targets, on the canvas."""
    costs = {index: task.cost(source, index) for index in indices}
    worst = sorted(indices, key=lambda index: (-costs[index], index))[:size]
    worst = (worst * size)[:size]  # a set smaller than a batch
    return collate([eval_transform(source.read(index), canvas_hw=data.canvas_hw) for index in worst])


def dry_run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    state_copies: int,
    accumulation: int,
    world: World,
    precision: Precision,
) -> None:
    """Forward and backward over the worst batch, as in a step, without an update.

    Args:
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
    with during("dry run", batch.image_ids, world.device):
        ballast = [torch.empty_like(parameter) for parameter in state_to_come]
    model.train()
    accumulate_gradients(
        model, [batch] * min(accumulation, 2), seed=0, step=0, world=world, precision=precision
    )
    optimizer.zero_grad(set_to_none=True)
    del ballast
    restore_buffers(model, statistics)
    if world.is_main:
        peak = ""
        if is_cuda:
            peak = f", at most {format_bytes(torch.cuda.max_memory_allocated(world.device))} live"
        logger.info("the worst batch fits (%s ...)%s", batch.image_ids[0], peak)
