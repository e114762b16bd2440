"""The simplest fusions: none (the control arm), sum, concatenation, late concatenation.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.layout import pointwise


class Identity(Fusion):
    """The RGB map for the detector; both streams continue unchanged, under either flow."""

    reads_aux: ClassVar[bool] = False

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        return FusionOutput(fused=rgb_BCHW, rgb_next=rgb_BCHW, aux_next=aux_BCHW)


class Add(Fusion):
    """The sum of both maps; under the rectified flow both streams continue unchanged."""

    def __init__(self, *, flow: Flow = "rectified") -> None:
        super().__init__()
        self.flow: Flow = flow

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        return route(self.flow, fused=rgb_BCHW + aux_BCHW, rgb_rectified=rgb_BCHW, aux_rectified=aux_BCHW)


class Concat(Fusion):
    """Both maps concatenated, then a 1x1 convolution 2C -> C with a bias: 2C^2 + C parameters.

    Under the rectified flow both streams continue unchanged.
    """

    def __init__(self, *, channels: int, flow: Flow = "rectified") -> None:
        super().__init__()
        self.flow: Flow = flow
        self.merge = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        fused_BCHW = pointwise(self.merge, torch.cat((rgb_BCHW, aux_BCHW), dim=1))
        return route(self.flow, fused=fused_BCHW, rgb_rectified=rgb_BCHW, aux_rectified=aux_BCHW)


class LateConcat(Fusion):
    """[B, 2C, H, W] for the detector, whose lateral convolutions read both maps; both streams continue unchanged."""

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        both_B2CHW = torch.cat((rgb_BCHW, aux_BCHW), dim=1)
        return FusionOutput(fused=both_B2CHW, rgb_next=rgb_BCHW, aux_next=aux_BCHW)

    def fused_channels(self, channels: int) -> int:
        return 2 * channels
