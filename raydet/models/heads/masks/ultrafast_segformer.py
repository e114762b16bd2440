"""SegFormer's head with a sum in place of the concatenation, as SegHiero's guide describes it.

Own layers: 1x1 convolutions to equal width, bilinear resizing to the first map, their sum, one 1x1 convolution with
batch norm and ReLU, a classifier.

Departures from the guide:
1. The bilinear resizing and the sum come before the convolution, as it has it; here, unlike in `segformer`, nothing is
   gained by another order.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from raydet.models.heads.masks.base import Decoder
from raydet.models.heads.masks.layers import classifier, conv_norm, resized
from raydet.models.layout import pointwise


class UltraFastSegFormer(Decoder):
    """Logits at the size of the first map.

    Args:
        in_channels: of the encoder's four maps.
        channels: to which every map is brought.
        dropout: of whole channels, in front of the classifier.
    """

    def __init__(
        self, *, in_channels: Sequence[int], num_outputs: int, channels: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in in_channels)
        self.fuse = conv_norm(channels, channels)
        self.classify = classifier(channels, num_outputs, dropout=dropout)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Logits [B, N, H, W] of the first map's size."""
        logits_BNHW: Tensor = self.classify(self.fuse(sum_of_maps(self.linears, maps_BCHW)))
        return logits_BNHW


def sum_of_maps(linears: nn.ModuleList, maps_BCHW: Sequence[Tensor]) -> Tensor:
    """Every map through its 1x1 convolution, at the size of the first, summed."""
    total_BCHW: Tensor | None = None
    for linear, x_BCHW in zip(linears, maps_BCHW, strict=True):
        assert isinstance(linear, nn.Conv2d)
        x_BCHW = resized(pointwise(linear, x_BCHW), maps_BCHW[0])
        total_BCHW = x_BCHW if total_BCHW is None else total_BCHW + x_BCHW
    assert total_BCHW is not None
    return total_BCHW
