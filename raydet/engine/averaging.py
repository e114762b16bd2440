"""An exponential average of the weights over the steps: what is evaluated, if a config asks for it.

The average lives beside the momenta, in the optimizer's state: it is cut, saved, restored and counted as they are.
Statistics of batch norms are no weights: the average is evaluated with the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from raydet.checkpoint.load import AVERAGE


def decay_at(decay: float, step: int) -> float:
    """Lower at first, so that the initial weights are soon forgotten (the usual min(decay, (1 + n) / (10 + n))).

    Args:
        step: updates before this one.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, *, decay: float, step: int) -> None:
    """To be called after each update of the weights."""
    averages: list[Tensor] = []
    weights: list[Tensor] = []
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state = optimizer.state[parameter]
        if AVERAGE in state:
            averages.append(state[AVERAGE])
            weights.append(parameter.detach())
        else:
            state[AVERAGE] = parameter.detach().clone()
    if averages:
        torch._foreach_lerp_(averages, weights, 1 - decay_at(decay, step))


@contextmanager
def averaged_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The model has the averages as its weights while the block runs; its own ones where there are none."""
    _swap(optimizer)
    try:
        yield
    finally:
        _swap(optimizer)


def take_average(optimizer: torch.optim.Optimizer) -> None:
    """Give the model the averages for good, where there are some."""
    _swap(optimizer)


@torch.no_grad()
def _swap(optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        if AVERAGE in state:
            weights = parameter.detach().clone()
            parameter.copy_(state[AVERAGE])
            state[AVERAGE].copy_(weights)
