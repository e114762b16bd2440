"""CSSA: unimportant channels are switched to the other stream's, then spatial attention over both.

Multimodal Object Detection by Channel Switching and Spatial Attention (PBVS at CVPR 2023). The channel weights are
those of ECA-Net (arXiv 1910.03151). Written from the description of the published ablation.

Notes:
1. As published, the switch is a comparison: no gradient reaches the channel weights, which keep their initial values.
   They are still counted as parameters. `straight_through` uses the gradient of a sigmoid; the output is the same.
2. Thresholds 0 and 1 are the same function: if all channels switch in both streams, the streams trade places, and the
   output is their mean.
3. `conv7` follows the ablation's guide (2Ck + 99 parameters), `plain` its code (2k): with `conv7` every channel has its
   own filter, and a 7x7 convolution replaces the product of two sigmoids in the spatial attention.

Legend: B batch, C channels, H W map, K taps.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route

Variant = Literal["plain", "conv7"]
SOFTNESS = 0.1
"""Temperature of the sigmoid whose gradient replaces that of the comparison, in units of channel weights."""


def adaptive_kernel_size(channels: int) -> int:
    """ECA-Net's rule, rounded as by the authors of CSSA.

    >>> [adaptive_kernel_size(channels) for channels in (64, 256, 512, 1024, 2048)]
    [3, 3, 5, 5, 5]
    """
    size = int(abs(math.log2(channels) / 2 + 0.5))
    return size if size % 2 else size - 1


class ChannelWeights(nn.Module):
    """Importance of each channel, 0..1, from its mean and the means of its neighbours.

    Args:
        kernel_size: number of channels in the filter, odd.
        is_shared: one filter for all channels (K parameters), or one for each (CK).
    """

    def __init__(self, *, channels: int, kernel_size: int, is_shared: bool) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(1 if is_shared else channels, kernel_size))
        bound = 1 / math.sqrt(kernel_size)  # PyTorch's default for a convolution
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 1, 1]."""
        means_BC = F.pad(x_BCHW.mean(dim=(2, 3)), (self.kernel_size // 2,) * 2)
        windows_BCK = means_BC.unfold(1, self.kernel_size, 1)
        return (windows_BCK * self.weight).sum(dim=2).sigmoid()[..., None, None]


class CSSA(Fusion):
    """Channel switching, then spatial attention; under the rectified flow the streams continue with switched maps.

    Args:
        threshold: a channel whose weight is below it is taken from the other stream.
        kernel_size: see `ChannelWeights`; None follows `adaptive_kernel_size`.
        straight_through: see note 1.
        variant: see note 3.
    """

    def __init__(
        self,
        *,
        channels: int,
        threshold: float = 0.5,
        kernel_size: int | None = 3,
        straight_through: bool = False,
        variant: Variant = "plain",
        flow: Flow = "rectified",
    ) -> None:
        super().__init__()
        self.flow: Flow = flow
        self.threshold = threshold
        self.straight_through = straight_through
        size = adaptive_kernel_size(channels) if kernel_size is None else kernel_size
        self.weights_rgb, self.weights_aux = (
            ChannelWeights(channels=channels, kernel_size=size, is_shared=variant == "plain")
            for _ in range(2)
        )
        if not straight_through:  # data-parallel training refuses parameters that get no gradient
            self.weights_rgb.requires_grad_(False)
            self.weights_aux.requires_grad_(False)
        self.conv7 = nn.Conv2d(2, 1, 7, padding=3) if variant == "conv7" else None

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        rgb_switched, aux_switched = self.switched(rgb_BCHW, aux_BCHW)
        attention_B1HW = self.attention(rgb_switched, aux_switched)
        fused_BCHW = (rgb_switched + aux_switched) / 2 * attention_B1HW
        return route(self.flow, fused=fused_BCHW, rgb_rectified=rgb_switched, aux_rectified=aux_switched)

    def switched(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        rgb_switched = self._switched(self.weights_rgb(rgb_BCHW), rgb_BCHW, aux_BCHW)
        aux_switched = self._switched(self.weights_aux(aux_BCHW), aux_BCHW, rgb_BCHW)
        return rgb_switched, aux_switched

    def _switched(self, weight_BC11: Tensor, own_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        is_switched = weight_BC11 < self.threshold
        if not self.straight_through:
            return torch.where(is_switched, other_BCHW, own_BCHW)
        soft = ((self.threshold - weight_BC11) / SOFTNESS).sigmoid()
        switch = is_switched.to(own_BCHW.dtype) + (soft - soft.detach()).to(own_BCHW.dtype)
        return switch * other_BCHW + (1 - switch) * own_BCHW

    def attention(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> Tensor:
        """Importance of each pixel, 0..1: [B, 1, H, W]; bit-identical if the streams are swapped."""
        mean_B1HW = (rgb_BCHW.mean(dim=1, keepdim=True) + aux_BCHW.mean(dim=1, keepdim=True)) / 2
        most_B1HW = torch.maximum(rgb_BCHW.amax(dim=1, keepdim=True), aux_BCHW.amax(dim=1, keepdim=True))
        if self.conv7 is None:
            return mean_B1HW.sigmoid() * most_B1HW.sigmoid()
        return self.conv7(torch.cat((mean_B1HW, most_B1HW), dim=1)).sigmoid()
