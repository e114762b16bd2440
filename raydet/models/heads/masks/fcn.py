"""A fully convolutional head: one 3x3 convolution on the last map, and a classifier.

Fully Convolutional Networks for Semantic Segmentation, arXiv 1411.4038. The layers are torchvision's (BSD-3-Clause,
imported).

Departures from torchvision:
1. Dropout is of whole channels, as in all of our heads.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from raydet.models.heads.masks.base import Decoder


class FCN(Decoder):
    """Logits at the size of the last map.

    Args:
        in_channels: of the encoder's four maps.
        dropout: of whole channels, in front of the classifier.
    """

    levels = (3,)

    def __init__(self, *, in_channels: Sequence[int], num_outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = FCNHead(in_channels[-1], num_outputs)
        self.layers[3] = nn.Dropout2d(dropout)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Logits [B, N, H, W] of the last map's size."""
        logits_BNHW: Tensor = self.layers(maps_BCHW[-1])
        return logits_BNHW
