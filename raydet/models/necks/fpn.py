"""Feature pyramid network with an extra level, as torchvision's Faster R-CNN uses it.

Feature Pyramid Networks for Object Detection, arXiv 1612.03144. The layers are torchvision's
(BSD-3-Clause, imported).

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from raydet.models.necks.base import Neck

LEVELS = ("0", "1", "2", "3", "pool")
"""torchvision's names: one level per map of the encoder, and one with every second cell of the last."""


class FPN(Neck):
    """Four maps of different widths in, five maps of one width out."""

    def __init__(self, *, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.channels = (channels,) * len(LEVELS)
        self.fpn = FeaturePyramidNetwork(list(in_channels), channels, extra_blocks=LastLevelMaxPool())

    def forward(self, maps_BCHW: Sequence[Tensor]) -> dict[str, Tensor]:
        """Maps [B, channels, H, W] by level name, the finest first."""
        return dict(self.fpn(dict(zip(LEVELS, maps_BCHW, strict=False))))
