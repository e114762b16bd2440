"""What every neck offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from torch import Tensor, nn


class Neck(nn.Module, ABC):
    """From the encoder's four maps to the pyramid that a head takes."""

    channels: tuple[int, ...]
    """Of each level of the pyramid, the finest first."""
    levels_read: Collection[int] | None = None
    """Indices of the encoder's maps that it reads; None: all that the head reads."""

    @abstractmethod
    def forward(self, maps_BCHW: Sequence[Tensor]) -> dict[str, Tensor]:
        """Maps [B, C, H, W] by level name, the finest first."""
