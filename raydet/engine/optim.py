"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import assert_never

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from raydet.config import (
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    OneCycleSchedule,
    Optimizer,
    PlateauSchedule,
    Schedule,
    SGDConfig,
    StepSchedule,
)

PLATEAU_THRESHOLD = 1e-4
"""PyTorch's: relative to the best value."""


def build_optimizer(config: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a config.

    SGD decays every parameter, as the published runs do; AdamW spares vectors (norms and biases), as transformers
    are trained.
    """
    parameters = list(parameters)
    match config:
        case SGDConfig():
            is_sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
            return torch.optim.SGD(
                parameters,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                fused=not is_sharded,  # the fastest, but not written for pieces
                foreach=is_sharded,
            )
        case AdamWConfig():
            groups = [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ]
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        case _:
            assert_never(config)


def learning_rate(
    config: Optimizer,
    *,
    step: int,
    steps_per_epoch: int,
    total_steps: int,
    utilities: Sequence[float] = (),
) -> float:
    """The learning rate of optimizer step 0..total_steps-1: a pure function, so a resume needs no schedule state.

    Args:
        utilities: of the deciding metric in each evaluation so far (see `Metric.utility`).
    """
    schedule = config.schedule
    if not isinstance(schedule, OneCycleSchedule) and step < schedule.warmup_steps:
        return config.lr * (step + 1) / schedule.warmup_steps
    return config.lr * _factor(schedule, step, steps_per_epoch, total_steps, utilities)


def _factor(
    schedule: Schedule,
    step: int,
    steps_per_epoch: int,
    total_steps: int,
    utilities: Sequence[float],
) -> float:
    match schedule:
        case ConstantSchedule():
            return 1.0
        case StepSchedule():
            return float(schedule.gamma ** (step // (steps_per_epoch * schedule.step_epochs)))
        case CosineSchedule():
            progress = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
            cosine = (1 + math.cos(math.pi * progress)) / 2
            return schedule.final_fraction + (1 - schedule.final_fraction) * cosine
        case PlateauSchedule():
            return float(schedule.factor ** _plateaus(utilities, schedule.patience))
        case OneCycleSchedule():
            return _one_cycle(schedule, step, total_steps)
        case _:
            assert_never(schedule)


def _one_cycle(schedule: OneCycleSchedule, step: int, total_steps: int) -> float:
    top = schedule.up_fraction * total_steps - 1
    if step < top:
        return schedule.first_fraction + (1 - schedule.first_fraction) * step / top
    # So few steps that none is spent on the way up: the first one is the highest.
    done = (step - max(top, 0)) / max(1, total_steps - 1 - max(top, 0))
    return 1 + (schedule.final_fraction - 1) * done


def _plateaus(utilities: Sequence[float], patience: int) -> int:
    """How often more than `patience` values in a row were no better than the best before them; the count restarts each
    time.

    >>> _plateaus([0.1, 0.3, 0.3, 0.2], patience=1), _plateaus([0.1, 0.3, 0.3, 0.2, 0.1, 0.1], patience=1)
    (1, 2)
    """
    best, num_bad, found = -math.inf, 0, 0
    for value in utilities:
        if value > (best + PLATEAU_THRESHOLD * abs(best) if math.isfinite(best) else best):
            best, num_bad = value, 0
        else:
            num_bad += 1
        if num_bad > patience:
            num_bad, found = 0, found + 1
    return found
