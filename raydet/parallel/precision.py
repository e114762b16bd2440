"""Numerical precision of the forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from raydet.config import Precision
from raydet.errors import ConfigError


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Where matrix products run in bf16; weights, norms, losses and box arithmetic stay fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def check_precision(precision: Precision, device: torch.device) -> None:
    """See that the device can do it.

    Raises:
        ConfigError: the GPU has no bf16.
    """
    is_bf16_gpu = device.type == "cuda" and precision == "bf16"
    if is_bf16_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"train.precision=bf16 wants a GPU with bf16 (Ampere or newer), got {name}; use fp32"
        )
