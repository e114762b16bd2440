"""DeepLabv3's head: atrous spatial pyramid pooling on the last map.

Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 1706.05587. The layers are torchvision's
(BSD-3-Clause, imported), their outputs, parameters and dropout too; meant for an encoder whose output stride is 8.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP, ASPPPooling

from raydet.models.heads.masks.base import Decoder
from raydet.models.heads.masks.layers import classifier, conv_norm


class DeepLabV3(Decoder):
    """Logits at the size of the last map.

    Args:
        in_channels: of the encoder's four maps.
        channels: of every branch and of the decoder.
        dilations: of one branch each, beside a 1x1 convolution and the pooled image.
        dropout: of whole channels, in front of the classifier; torchvision has none there.
    """

    levels = (3,)

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_outputs: int,
        channels: int = 256,
        dilations: Sequence[int] = (12, 24, 36),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels[-1], dilations, channels)
        self.refine = conv_norm(channels, channels, kernel=3)
        self.classify = classifier(channels, num_outputs, dropout=dropout)

    @property
    def pooled_norm(self) -> nn.Module:
        """See `Decoder`."""
        return pooled_norm_of(self.aspp)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Logits [B, N, H, W] of the last map's size."""
        logits_BNHW: Tensor = self.classify(self.refine(self.aspp(maps_BCHW[-1])))
        return logits_BNHW


def pooled_norm_of(aspp: ASPP) -> nn.Module:
    """The batch norm behind the pooling of whole images."""
    pooling = aspp.convs[-1]
    assert isinstance(pooling, ASPPPooling)
    return pooling[2]
