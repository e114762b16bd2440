"""A learned mix of a fusion and the RGB map, pixel by pixel: the ablation guide's "gated fusion".

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.layout import pointwise


class Gated(Fusion):
    """gate * fused + (1 - gate) * RGB, where gate = sigmoid(1x1 convolution of both maps): 2C^2 + C parameters.

    The fused map of `fusion` must have `channels` channels, and `flow` must be the flow of `fusion`.
    """

    def __init__(self, fusion: Fusion, *, channels: int, flow: Flow = "rectified") -> None:
        super().__init__()
        self.flow: Flow = flow
        self.fusion = fusion
        self.gate = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        fused_BCHW, rgb_next, aux_next, _ = self.fusion(rgb_BCHW, aux_BCHW)
        gate_BCHW = pointwise(self.gate, torch.cat((rgb_BCHW, aux_BCHW), dim=1)).sigmoid()
        mixed_BCHW = gate_BCHW * fused_BCHW + (1 - gate_BCHW) * rgb_BCHW
        return route(self.flow, fused=mixed_BCHW, rgb_rectified=rgb_next, aux_rectified=aux_next)
