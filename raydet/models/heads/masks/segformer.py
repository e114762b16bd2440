"""SegFormer's head: the four maps at equal width and at the size of the first, concatenated, and one 1x1 convolution.

SegFormer, arXiv 2105.15203. Own layers, from the paper; with MiT-b5 and 768 channels it has the parameters of the
published model, 3,160,333 with 13 classes.

Departures from the paper:
1. The maps are not concatenated. The 1x1 convolution after it is a sum over the maps, and commutes with the bilinear
   resizing: each map goes through its part of the convolution at its own size, and the results are resized and added.
   The function is the same, with a third of the operations at the finest size and no map of four times the width.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.heads.masks.base import Decoder
from raydet.models.heads.masks.layers import classifier, resized
from raydet.models.layout import pointwise


class SegFormer(Decoder):
    """Logits at the size of the first map.

    Args:
        in_channels: of the encoder's four maps.
        channels: to which every map is brought.
        dropout: of whole channels, in front of the classifier.
    """

    def __init__(
        self, *, in_channels: Sequence[int], num_outputs: int, channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in in_channels)
        self.fuse = nn.Conv2d(len(in_channels) * channels, channels, 1, bias=False)
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classify = classifier(channels, num_outputs, dropout=dropout)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Logits [B, N, H, W] of the first map's size."""
        weights = self.fuse.weight.flatten(1).chunk(len(self.linears), dim=1)
        parts_BCHW = []
        for linear, weight_CC, x_BCHW in zip(self.linears, weights, maps_BCHW, strict=True):
            assert isinstance(linear, nn.Conv2d)
            x_BHWC = F.linear(pointwise(linear, x_BCHW).permute(0, 2, 3, 1), weight_CC)
            parts_BCHW.append(resized(x_BHWC.permute(0, 3, 1, 2), maps_BCHW[0]))
        first_BCHW, *others = parts_BCHW
        for x_BCHW in others:
            first_BCHW = first_BCHW + x_BCHW
        logits_BNHW: Tensor = self.classify(self.norm(first_BCHW))
        return logits_BNHW
