"""What every neck offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Neck(nn.Module, ABC):
    """From the encoder's four maps to the pyramid that a head takes."""

    channels: tuple[int, ...]
    """Of each level of the pyramid, the finest first."""

    @abstractmethod
    def forward(self, maps_BCHW: Sequence[Tensor]) -> dict[str, Tensor]:
        """Maps [B, C, H, W] by level name, the finest first."""
