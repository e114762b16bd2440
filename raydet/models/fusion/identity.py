"""No fusion: the control arm, and the policy for stages that a study leaves alone."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from raydet.models.fusion.base import Fusion, FusionOutput


class Identity(Fusion):
    """The RGB map goes to the detector; both streams go on alone, under either flow."""

    reads_aux: ClassVar[bool] = False

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        return FusionOutput(fused=rgb_BCHW, rgb_next=rgb_BCHW, aux_next=aux_BCHW)
