"""The smallest of the SegFormer heads of SegHiero's guide: maps 2 to 4 only, summed at the size of the second.

Own layers: 1x1 convolutions to equal width, bilinear resizing, their sum, one depthwise-separable 3x3 convolution, a
classifier. The finest map is not read: its weights are trained through the later stages only.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from raydet.models.heads.masks.base import Decoder
from raydet.models.heads.masks.layers import classifier, separable_conv
from raydet.models.heads.masks.ultrafast_segformer import sum_of_maps


class ExtremelyFastSegFormer(Decoder):
    """Logits at the size of the second map.

    Args:
        in_channels: of the encoder's four maps.
        channels: to which every map is brought.
        dropout: of whole channels, in front of the classifier.
    """

    levels = (1, 2, 3)

    def __init__(
        self, *, in_channels: Sequence[int], num_outputs: int, channels: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in in_channels[1:])
        self.fuse = separable_conv(channels, channels)
        self.classify = classifier(channels, num_outputs, dropout=dropout)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Logits [B, N, H, W] of the second map's size."""
        logits_BNHW: Tensor = self.classify(self.fuse(sum_of_maps(self.linears, maps_BCHW[1:])))
        return logits_BNHW
