"""The sum of both maps: the plainest fusion, without a parameter.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from torch import Tensor

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route


class Add(Fusion):
    """Under the rectified flow both streams go on as they came."""

    def __init__(self, *, flow: Flow = "rectified") -> None:
        super().__init__()
        self.flow: Flow = flow

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        return route(self.flow, fused=rgb_BCHW + aux_BCHW, rgb_rectified=rgb_BCHW, aux_rectified=aux_BCHW)
