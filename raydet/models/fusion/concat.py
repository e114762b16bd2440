"""Both maps side by side, and a 1x1 convolution back to the width of one.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.layout import pointwise


class Concat(Fusion):
    """2C -> C with a bias: 2C^2 + C parameters. Under the rectified flow both streams go on as they came."""

    def __init__(self, *, channels: int, flow: Flow = "rectified") -> None:
        super().__init__()
        self.flow: Flow = flow
        self.merge = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        fused_BCHW = pointwise(self.merge, torch.cat((rgb_BCHW, aux_BCHW), dim=1))
        return route(self.flow, fused=fused_BCHW, rgb_rectified=rgb_BCHW, aux_rectified=aux_BCHW)
