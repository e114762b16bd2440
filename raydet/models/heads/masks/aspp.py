"""Depthwise-separable atrous spatial pyramid pooling, joined with the finest map: the head of SegHiero.

DeepLabv3+: Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, arXiv 1802.02611. With a
projection to an embedding it is the head of Deep Hierarchical Semantic Segmentation, CVPR 2022. Own layers, from the
papers; with 2048 and 256 channels, and a projection to 256, it has 11,925,104 parameters and 513 per output.

Departures from SegHiero:
1. Channels follow the backbone instead of ResNet-50's.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raydet.models.heads.masks.base import Decoder
from raydet.models.heads.masks.layers import classifier, conv_norm, resized, separable_conv


class ASPP(Decoder):
    """Logits at the size of the first map.

    Args:
        in_channels: of the encoder's four maps.
        channels: of every branch and of the decoder.
        low_channels: to which the first map is reduced.
        dilations: of one branch each; 1 is a 1x1 convolution.
        dropout: of whole channels, in front of the classifier.
    """

    levels = (0, 3)

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_outputs: int,
        channels: int = 512,
        low_channels: int = 48,
        dilations: Sequence[int] = (1, 12, 24, 36),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        first, last = in_channels[0], in_channels[-1]
        self.pool = conv_norm(last, channels)
        self.branches = nn.ModuleList(
            conv_norm(last, channels) if dilation == 1 else separable_conv(last, channels, dilation=dilation)
            for dilation in dilations
        )
        self.bottleneck = conv_norm((1 + len(dilations)) * channels, channels)
        self.low = conv_norm(first, low_channels)
        self.join = nn.Sequential(
            separable_conv(channels + low_channels, channels), separable_conv(channels, channels)
        )
        self.classify = classifier(channels, num_outputs, dropout=dropout)

    @property
    def pooled_norm(self) -> nn.Module:
        """See `Decoder`."""
        return self.pool[1]

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Logits [B, N, H, W] of the first map's size."""
        first_BCHW, last_BCHW = maps_BCHW[0], maps_BCHW[-1]
        pooled_BC11 = self.pool(last_BCHW.mean(dim=(2, 3), keepdim=True))
        branches = [pooled_BC11.expand(-1, -1, *last_BCHW.shape[2:])]
        branches += [branch(last_BCHW) for branch in self.branches]
        context_BCHW = resized(self.bottleneck(torch.cat(branches, dim=1)), first_BCHW)
        joined_BCHW = self.join(torch.cat([context_BCHW, self.low(first_BCHW)], dim=1))
        logits_BNHW: Tensor = self.classify(joined_BCHW)
        return logits_BNHW
