"""The four stages of a backbone: each takes the map of the previous one, so that fusions fit in between.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
"""Pixels per map cell after each stage, unless later stages are dilated instead of halving the map."""

Four = tuple[int, int, int, int]


class StageSizes(Protocol):
    """The sizes that fusions are built from, one entry per stage.

    `strides` are pixels per map cell.
    `num_heads` and `sr_ratios` are for attention between the streams: heads, which divide the channels, and the factor
    per side by which the grid of keys and values is reduced.
    """

    @property
    def channels(self) -> Four: ...
    @property
    def num_heads(self) -> Four: ...
    @property
    def sr_ratios(self) -> Four: ...
    @property
    def strides(self) -> Four: ...


class Stage(nn.Module, ABC):
    channels: int
    """Channels of the map that it returns."""

    @abstractmethod
    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H', W']: half the size, a quarter in the first stage, the same if dilated."""

    @abstractmethod
    def block_groups(self) -> list[list[nn.Module]]:
        """Its blocks in call order, at least one, grouped by equal memory cost.

        A block's parameters are used in its own forward pass only.
        """

    def keep_first_blocks(self) -> None:
        """Keep the first block of every group; the default is for groups of one block."""
