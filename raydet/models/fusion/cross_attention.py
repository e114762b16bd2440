"""Multi-head cross-attention in both directions, then a 1x1 merge.

The attention is SegFormer's (arXiv 2105.15203) with keys and values from the other stream's reduced grid. The
Cross-Modality Fusion Transformer (arXiv 2111.00273) concatenates the tokens of both streams instead, at a higher cost.

Legend: B batch, C channels, H W map, N = H W tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydet.models.backbones.mit import NORM_EPS, EfficientAttention
from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.layout import as_map, as_tokens, hw_of, pointwise


class CrossModalAttention(EfficientAttention):
    """Attention with queries from one stream and keys and values from the other.

    Parameters: 4C^2 + 4C, and with sr_ratio > 1 another C^2 sr_ratio^2 + 3C.
    """

    def forward(self, own_BNC: Tensor, other_BNC: Tensor, hw: tuple[int, int]) -> Tensor:  # type: ignore[override]
        return self._attend(own_BNC, other_BNC, hw)

    def _reduced(self, x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
        """Unlike in the encoder, the map is padded to whole patches, since it can be small."""
        if self.reduce is None:
            return x_BNC
        missing_h, missing_w = (-size % self.reduce.stride[0] for size in hw)
        padded_BCHW = nn.functional.pad(as_map(x_BNC, hw), (0, missing_w, 0, missing_h))
        return self.reduce_norm(as_tokens(self.reduce(padded_BCHW)))


class CrossAttentionFusion(Fusion):
    """Cross-attention, residual addition, merge; under the rectified flow the streams continue with their sums.

    `num_heads` is the encoder stage's; `sr_ratio` is the factor per side by which the other stream's grid is reduced.
    """

    def __init__(self, *, channels: int, num_heads: int, sr_ratio: int, flow: Flow = "rectified") -> None:
        super().__init__()
        self.flow: Flow = flow
        self.norm_rgb, self.norm_aux = (nn.LayerNorm(channels, eps=NORM_EPS) for _ in range(2))
        self.ask_aux, self.ask_rgb = (
            CrossModalAttention(channels=channels, num_heads=num_heads, sr_ratio=sr_ratio) for _ in range(2)
        )
        self.merge = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        hw = hw_of(rgb_BCHW)
        rgb_BNC, aux_BNC = self.norm_rgb(as_tokens(rgb_BCHW)), self.norm_aux(as_tokens(aux_BCHW))
        rgb_sum_BCHW = rgb_BCHW + as_map(self.ask_aux(rgb_BNC, aux_BNC, hw), hw)
        aux_sum_BCHW = aux_BCHW + as_map(self.ask_rgb(aux_BNC, rgb_BNC, hw), hw)
        fused_BCHW = pointwise(self.merge, torch.cat((rgb_sum_BCHW, aux_sum_BCHW), dim=1))
        return route(self.flow, fused=fused_BCHW, rgb_rectified=rgb_sum_BCHW, aux_rectified=aux_sum_BCHW)
