"""What a trunk consists of: four stages, each taking the map of the one before, so that fusions fit in between.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
"""Pixels per map cell after each stage."""

Four = tuple[int, int, int, int]


class StageSizes(Protocol):
    """What fusions are made from; one entry per stage."""

    @property
    def channels(self) -> Four:
        """Widths of the maps."""

    @property
    def num_heads(self) -> Four:
        """For attention between the streams; they divide the channels."""

    @property
    def sr_ratios(self) -> Four:
        """Keys and values are taken from a grid that is smaller by this factor per side."""


class Stage(nn.Module, ABC):
    """One stage of one stream."""

    channels: int
    """Of the map that it returns."""

    @abstractmethod
    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H', W']: half the size, a quarter in the first stage."""

    @abstractmethod
    def block_runs(self) -> list[list[nn.Module]]:
        """Its blocks in the order of their calls, at least one; those that cost the same memory share a list.

        A block's parameters are touched within its own forward pass only.
        """

    def shorten(self) -> None:
        """Keep the first block of every run. Nothing to do where each is a run of its own."""
