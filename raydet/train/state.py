"""What a run has reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(slots=True)
class TrainState:
    """Everything that a checkpoint brings back, and nothing else."""

    model: nn.Module
    """Wrapped for several workers where there are several."""
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Optimiser steps completed."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row of metrics per completed epoch."""
    loop_s: float = 0.0
    """Seconds in completed epochs, interrupted attempts included."""
    checkpoint_s: float = 0.0
    """Seconds that epochs waited for checkpoints, in this process; the last write, after the last epoch, left out."""

    def as_json(self) -> dict[str, Any]:
        """The part that is not a tensor."""
        return {"epoch": self.epoch, "step": self.step, "history": self.history, "loop_s": self.loop_s}

    def take(self, saved: dict[str, Any]) -> None:
        """Continue from what `as_json` gave."""
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.history, self.loop_s = saved["history"], saved["loop_s"]
