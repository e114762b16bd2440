"""GAFF-style fusion: squeeze-and-excitation per modality, pixelwise gates across modalities, a 1x1 merge.

After Guided Attentive Feature Fusion for Multispectral Pedestrian Detection (WACV 2021) and Squeeze-and-Excitation
Networks (arXiv 1709.01507). Written from the description of the published ablation.

Departures from the paper:
1. The paper's attention is trained against object masks (the "guided" in its name) and weighs the modalities by a
   softmax; here, as in the ablation that we compare with, both are learnt from the detection loss alone and the gates
   are independent sigmoids. The block shares little more than the name with the paper.
2. `inter_shared` is one 2C -> 2C convolution in place of two 2C -> C. Its halves *are* two such convolutions: same
   functions, same parameters, same initial distribution. Differences between the two forms measure noise.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.layout import pointwise


class SqueezeExcitation(nn.Module):
    """Scale every channel by what the whole map says about it."""

    def __init__(self, *, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.gate = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * self.weights(x_BCHW)[..., None, None]

    def weights(self, x_BCHW: Tensor) -> Tensor:
        """Returns: the scale of each channel, 0..1: [B, C]."""
        weights_BC: Tensor = self.gate(x_BCHW.mean(dim=(2, 3)))
        return weights_BC


class InterModalityGates(nn.Module):
    """How much of each modality each pixel takes from the other one: two gate maps in 0..1."""

    def __init__(self, *, channels: int, shared: bool) -> None:
        super().__init__()
        widths = (2 * channels,) if shared else (channels, channels)
        self.convs = nn.ModuleList(nn.Conv2d(2 * channels, width, 1, bias=False) for width in widths)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns: the gate of what flows from aux into RGB, and the gate of the way back."""
        both = torch.cat((rgb_BCHW, aux_BCHW), dim=1)
        # One convolution with both gates, or one for each.
        maps = [self._gates(conv, both) for conv in self.convs]
        into_rgb_BCHW, into_aux_BCHW = maps if len(maps) == 2 else maps[0].chunk(2, dim=1)
        return into_rgb_BCHW, into_aux_BCHW

    def _gates(self, conv: nn.Module, both: Tensor) -> Tensor:
        assert isinstance(conv, nn.Conv2d)
        return pointwise(conv, both).sigmoid()


def merge(*, channels: int, bottleneck: bool) -> nn.Sequential:
    """2C -> C: one 1x1 convolution, or two with a ReLU between them; batch-normalised."""
    first = (nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
    if not bottleneck:
        return nn.Sequential(*first)
    return nn.Sequential(
        *first, nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
    )


class GAFF(Fusion):
    """Excite, gate, merge. Under the rectified flow the streams go on with their guided maps.

    Args:
        channels: of both maps.
        se_reduction: width of the squeeze is C / se_reduction.
        inter_shared: see departure 2.
        merge_bottleneck: two convolutions in the merge.
        flow: see `fusion.base`.
    """

    def __init__(
        self,
        *,
        channels: int,
        se_reduction: int = 4,
        inter_shared: bool = False,
        merge_bottleneck: bool = False,
        flow: Flow = "rectified",
    ) -> None:
        super().__init__()
        self.flow: Flow = flow
        self.se_rgb = SqueezeExcitation(channels=channels, reduction=se_reduction)
        self.se_aux = SqueezeExcitation(channels=channels, reduction=se_reduction)
        self.inter = InterModalityGates(channels=channels, shared=inter_shared)
        self.merge = merge(channels=channels, bottleneck=merge_bottleneck)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        into_rgb_BCHW, into_aux_BCHW = self.inter(rgb_BCHW, aux_BCHW)
        # What flows in from the partner is its raw map, not its excited one.
        rgb_guided_BCHW = self.se_rgb(rgb_BCHW) + into_rgb_BCHW * aux_BCHW
        aux_guided_BCHW = self.se_aux(aux_BCHW) + into_aux_BCHW * rgb_BCHW
        fused_BCHW = torch.cat((rgb_guided_BCHW, aux_guided_BCHW), dim=1)
        for layer in self.merge:
            fused_BCHW = pointwise(layer, fused_BCHW) if isinstance(layer, nn.Conv2d) else layer(fused_BCHW)
        return route(
            self.flow, fused=fused_BCHW, rgb_rectified=rgb_guided_BCHW, aux_rectified=aux_guided_BCHW
        )
