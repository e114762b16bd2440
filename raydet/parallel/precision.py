"""Numerical precision of the forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from raydet.errors import ConfigError


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> AbstractContextManager[None]:
    """Where matrix products run in bf16; weights, norms, losses and box arithmetic stay fp32.

    Raises:
        ConfigError: the GPU cannot do bf16.
    """
    if precision == "fp32":
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"train.precision=bf16 wants a GPU with bf16 (Ampere or newer), got {name}; use fp32"
        )
    return torch.autocast(device.type, dtype=torch.bfloat16)
