"""GAFF-style fusion: squeeze-and-excitation per modality, pixelwise gates across modalities, a 1x1 merge.

After Guided Attentive Feature Fusion for Multispectral Pedestrian Detection (WACV 2021) and Squeeze-and-Excitation
Networks (arXiv 1709.01507). Written from the description of the published ablation; the options are the extensions that
its guide proposes.

Departures from the paper:
1. The paper's attention is trained against object masks (hence "guided") and weighs the modalities by a softmax. Here,
   as in the ablation that we compare with, it is learnt from the detection loss alone and the gates are independent
   sigmoids. `fusion.guided` adds the paper's attention.
2. `inter_shared` is one 2C -> 2C convolution in place of two 2C -> C: the same function, parameters and initial
   distribution, so differences between the two forms measure noise.

Parameters, with C channels, O of the fused map, reduction r, S scales:
    excitation   4 C max(C // r, 1); 0 without
    gates        4 C^2 S
    scales       2 for `partner`, 4 for `both`
    merge        2 C O + 2 O; with a bottleneck 2 C^2 + 2 C + C O + 2 O

Legend: B batch, C channels, H W map, h w pooled map.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.init import StackedConv2d
from raydet.models.layout import hw_of, pointwise

MergeWeights = Literal["none", "partner", "both"]


class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate computed from the means of all channels."""

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
        """The scale of each channel, 0..1: [B, C]."""
        return self.gate(x_BCHW.mean(dim=(2, 3)))


class InterModalityGates(nn.Module):
    """Two gate maps in 0..1: the share of the other modality that is added to each pixel and channel.

    With x both maps concatenated and S scales, a gate is the sigmoid of the mean over s of up_s(conv_s(pool_s(x))):
    pool_s averages cells of 2^s x 2^s pixels (cropped at the border), up_s enlarges by 2^s, bilinearly, and crops to
    the size of x. Every scale has its own convolutions.

    Args:
        shared: see departure 2.
        num_scales: S.
    """

    def __init__(self, *, channels: int, shared: bool, num_scales: int = 1) -> None:
        super().__init__()
        self.convs = _two_gates(channels, shared=shared)
        self.coarse = nn.ModuleList(_two_gates(channels, shared=shared) for _ in range(1, num_scales))

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The gate from aux into RGB, and the gate from RGB into aux; [B, C, H, W] each."""
        both, (height, width) = torch.cat((rgb_BCHW, aux_BCHW), dim=1), hw_of(rgb_BCHW)
        logits = [_convolve(conv, both) for conv in self.convs]
        for scale, convs in enumerate(self.coarse, 1):
            assert isinstance(convs, nn.ModuleList)
            size = 2**scale
            pooled = F.avg_pool2d(both, size, ceil_mode=True)
            coarse = [F.interpolate(_convolve(c, pooled), scale_factor=size, mode="bilinear") for c in convs]
            logits = [fine + more[..., :height, :width] for fine, more in zip(logits, coarse, strict=True)]
        if self.coarse:
            logits = [total / (1 + len(self.coarse)) for total in logits]
        maps = [x.sigmoid() for x in logits]
        into_rgb_BCHW, into_aux_BCHW = maps if len(maps) == 2 else maps[0].chunk(2, dim=1)
        return into_rgb_BCHW, into_aux_BCHW


def _two_gates(channels: int, *, shared: bool) -> nn.ModuleList:
    """One convolution for both gates, or one for each."""
    if shared:
        return nn.ModuleList([StackedConv2d(2 * channels, 2 * channels, num_stacked=2)])
    return nn.ModuleList(nn.Conv2d(2 * channels, channels, 1, bias=False) for _ in range(2))


def _convolve(conv: nn.Module, x_BCHW: Tensor) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    return pointwise(conv, x_BCHW)


def merge(*, channels: int, out_channels: int, bottleneck: bool) -> nn.Sequential:
    """2C -> O: one 1x1 convolution, or two with a ReLU between them; batch-normalised."""
    width = channels if bottleneck else out_channels
    first = (nn.Conv2d(2 * channels, width, 1, bias=False), nn.BatchNorm2d(width))
    if not bottleneck:
        return nn.Sequential(*first)
    return nn.Sequential(
        *first, nn.ReLU(), nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
    )


class GAFF(Fusion):
    """Excitation, gates, merge; under the rectified flow the streams continue with their guided maps.

    A guided map is own * excited(x) + partner * gate * (the other map), with scalars `own` and `partner` per stream.

    Args:
        out_channels: channels of the fused map; None: the same, which the fused flow requires.
        se_reduction: width of the squeeze is C / se_reduction; None: no excitation (GAFF-Lite).
        inter_shared: see departure 2.
        inter_scales: see `InterModalityGates`.
        merge_bottleneck: two convolutions in the merge.
        merge_weights: which of the two scalars are learnt, starting at 1; the others are fixed at 1.
    """

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int | None = None,
        se_reduction: int | None = 4,
        inter_shared: bool = False,
        inter_scales: int = 1,
        merge_bottleneck: bool = False,
        merge_weights: MergeWeights = "none",
        flow: Flow = "rectified",
    ) -> None:
        super().__init__()
        self.flow: Flow = flow
        self.out_channels = out_channels or channels
        self.se_rgb, self.se_aux = (
            nn.Identity()
            if se_reduction is None
            else SqueezeExcitation(channels=channels, reduction=se_reduction)
            for _ in range(2)
        )
        self.inter = InterModalityGates(channels=channels, shared=inter_shared, num_scales=inter_scales)
        self.merge = merge(channels=channels, out_channels=self.out_channels, bottleneck=merge_bottleneck)
        # One scalar for the RGB stream and one for the other.
        self.own = nn.Parameter(torch.ones(2)) if merge_weights == "both" else None
        self.partner = nn.Parameter(torch.ones(2)) if merge_weights != "none" else None

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        into_rgb_BCHW, into_aux_BCHW = self.inter(rgb_BCHW, aux_BCHW)
        # The partner contributes its raw map, not its excited one.
        rgb_guided_BCHW = self._sum(0, self.se_rgb(rgb_BCHW), into_rgb_BCHW * aux_BCHW)
        aux_guided_BCHW = self._sum(1, self.se_aux(aux_BCHW), into_aux_BCHW * rgb_BCHW)
        fused_BCHW = torch.cat((rgb_guided_BCHW, aux_guided_BCHW), dim=1)
        for layer in self.merge:
            fused_BCHW = pointwise(layer, fused_BCHW) if isinstance(layer, nn.Conv2d) else layer(fused_BCHW)
        return route(
            self.flow, fused=fused_BCHW, rgb_rectified=rgb_guided_BCHW, aux_rectified=aux_guided_BCHW
        )

    def fused_channels(self, channels: int) -> int:
        return self.out_channels

    def _sum(self, stream: int, own_BCHW: Tensor, partner_BCHW: Tensor) -> Tensor:
        if self.own is not None:
            own_BCHW = self.own[stream] * own_BCHW
        if self.partner is not None:
            partner_BCHW = self.partner[stream] * partner_BCHW
        return own_BCHW + partner_BCHW
