"""DeepLabv3+'s head: DeepLabv3's pyramid pooling, joined with the finest map.

Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation, arXiv 1802.02611. The pooling is
torchvision's (BSD-3-Clause, imported); the decoder is the paper's best with ResNet: the first map at 48 channels, then
two 3x3 convolutions. `aspp` has separable convolutions in both places.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from raydet.models.heads.masks.base import Decoder
from raydet.models.heads.masks.deeplabv3 import pooled_norm_of
from raydet.models.heads.masks.layers import classifier, conv_norm, resized


class DeepLabV3Plus(Decoder):
    """Logits at the size of the first map.

    Args:
        in_channels: of the encoder's four maps.
        channels: of every branch and of the decoder.
        low_channels: to which the first map is reduced.
        dilations: of one branch each, beside a 1x1 convolution and the pooled image.
        dropout: of whole channels, in front of the classifier, beside torchvision's own behind the pooling.
    """

    levels = (0, 3)

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_outputs: int,
        channels: int = 256,
        low_channels: int = 48,
        dilations: Sequence[int] = (12, 24, 36),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels[-1], dilations, channels)
        self.low = conv_norm(in_channels[0], low_channels)
        self.join = nn.Sequential(
            conv_norm(channels + low_channels, channels, kernel=3), conv_norm(channels, channels, kernel=3)
        )
        self.classify = classifier(channels, num_outputs, dropout=dropout)

    @property
    def pooled_norm(self) -> nn.Module:
        """See `Decoder`."""
        return pooled_norm_of(self.aspp)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Logits [B, N, H, W] of the first map's size."""
        context_BCHW = resized(self.aspp(maps_BCHW[-1]), maps_BCHW[0])
        joined_BCHW = self.join(torch.cat([context_BCHW, self.low(maps_BCHW[0])], dim=1))
        logits_BNHW: Tensor = self.classify(joined_BCHW)
        return logits_BNHW
