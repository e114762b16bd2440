"""Numerical precision of the forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from raydet.config import Precision, TrainConfig
from raydet.cpu import refuse_slow_bf16
from raydet.errors import ConfigError


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """A context in which matrix products run in `precision`; weights, norms, losses and box arithmetic stay fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def check_precision(train: TrainConfig, device: torch.device) -> None:
    """Refuse a precision for which the device has no instructions.

    Raises:
        ConfigError: the GPU has no bf16, or the CPU has none, see `raydet.cpu.refuse_slow_bf16`.
    """
    if device.type == "cpu":
        refuse_slow_bf16(train)
    elif train.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"train.precision=bf16 expected a GPU with bf16 (Ampere or newer), got {name}; use fp32"
        )
