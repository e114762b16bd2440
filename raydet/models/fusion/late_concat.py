"""Late fusion: the streams never meet in the encoder, the pyramid's lateral convolutions see both maps.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydet.models.fusion.base import Fusion, FusionOutput


class LateConcat(Fusion):
    """[B, 2C, H, W] for the detector; both streams go on alone, under either flow."""

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        both_B2CHW = torch.cat((rgb_BCHW, aux_BCHW), dim=1)
        return FusionOutput(fused=both_B2CHW, rgb_next=rgb_BCHW, aux_next=aux_BCHW)

    def fused_channels(self, channels: int) -> int:
        return 2 * channels
