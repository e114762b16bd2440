"""Deterministic weights and inputs, without a random generator, for the golden numbers of the models.

Every parameter depends on its shape alone, so the numbers do not depend on module names or on registration order.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

NORMS = (nn.LayerNorm, nn.BatchNorm2d)


def sin_input(*shape: int, phase: float = 0.0) -> Tensor:
    """float64 tensor whose row-major element i is sin(0.37 i + phase)."""
    count = torch.Size(shape).numel()
    return torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + phase).view(shape)


def sin_filled(module: M) -> M:
    """The module in float64 and eval mode; weights 0.05 sin(0.7 i + 0.3), biases 0.01 cos(i), norm scales 1."""
    module.double().eval()
    scales = {id(layer.weight) for layer in module.modules() if isinstance(layer, NORMS)}
    with torch.no_grad():
        for parameter in module.parameters():
            i = torch.arange(parameter.numel(), dtype=torch.float64)
            if id(parameter) in scales:
                parameter.fill_(1.0)
            elif parameter.dim() == 1:
                parameter.copy_(0.01 * torch.cos(i))
            else:
                parameter.copy_(0.05 * torch.sin(0.7 * i + 0.3).view_as(parameter))
    return module


def summary(x: Tensor) -> list[float]:
    """Sum, mean absolute value, first and last element."""
    flat = x.detach().reshape(-1)
    return [flat.sum().item(), flat.abs().mean().item(), flat[0].item(), flat[-1].item()]
