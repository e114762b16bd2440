"""Each stream asks the other one: multi-head cross-attention both ways, then a 1x1 merge.

The attention is SegFormer's (arXiv 2105.15203) with the other stream's reduced grid for keys and values, as
transformers for two modalities have it (Cross-Modality Fusion Transformer, arXiv 2111.00273, joins the tokens of both;
here each stream keeps its own, which is cheaper by the reduction).

Legend: B batch, C channels, H W map, N = H W tokens, M reduced tokens, A attention heads, D = C / A.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydet.models.backbones.mit import NORM_EPS, EfficientAttention, attend, num_chunks_of
from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.layout import as_map, as_tokens, hw_of, pointwise


class Question(EfficientAttention):
    """What one stream takes from the other: queries from the one, keys and values from the other.

    Parameters: 4C^2 + 4C, and with sr_ratio > 1 another C^2 sr_ratio^2 + 3C.
    """

    def forward(self, own_BNC: Tensor, other_BNC: Tensor, hw: tuple[int, int]) -> Tensor:  # type: ignore[override]
        q_BNAD = self.query(own_BNC).unflatten(2, (self.num_heads, -1))
        key_value = self.key_value(self._reduced(other_BNC, hw))
        k_BMAD, v_BMAD = key_value.unflatten(2, (2, self.num_heads, -1)).unbind(2)
        out_BNAD = attend(q_BNAD, k_BMAD, v_BMAD, num_chunks=num_chunks_of(q_BNAD))
        asked: Tensor = self.proj(out_BNAD.flatten(2))
        return asked

    def _reduced(self, x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
        """What is left beyond the last whole patch is looked at, too, unlike in the encoder: maps can be small."""
        if self.reduce is None:
            return x_BNC
        reduced: Tensor = self.reduce_norm(as_tokens(self.reduce(self._padded(as_map(x_BNC, hw)))))
        return reduced

    def _padded(self, x_BCHW: Tensor) -> Tensor:
        assert self.reduce is not None
        step = self.reduce.stride[0]
        missing_h, missing_w = (-size % step for size in hw_of(x_BCHW))
        return nn.functional.pad(x_BCHW, (0, missing_w, 0, missing_h))


class CrossAttentionFusion(Fusion):
    """Ask, add, merge. Under the rectified flow the streams go on with what they have been told added.

    Args:
        channels: of both maps.
        num_heads: as the encoder's stage has.
        sr_ratio: by which the other stream's grid is reduced.
        flow: see `fusion.base`.
    """

    def __init__(self, *, channels: int, num_heads: int, sr_ratio: int, flow: Flow = "rectified") -> None:
        super().__init__()
        self.flow: Flow = flow
        self.norm_rgb, self.norm_aux = (nn.LayerNorm(channels, eps=NORM_EPS) for _ in range(2))
        self.ask_aux, self.ask_rgb = (
            Question(channels=channels, num_heads=num_heads, sr_ratio=sr_ratio) for _ in range(2)
        )
        self.merge = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        hw = hw_of(rgb_BCHW)
        rgb_BNC, aux_BNC = self.norm_rgb(as_tokens(rgb_BCHW)), self.norm_aux(as_tokens(aux_BCHW))
        rgb_told_BCHW = rgb_BCHW + as_map(self.ask_aux(rgb_BNC, aux_BNC, hw), hw)
        aux_told_BCHW = aux_BCHW + as_map(self.ask_rgb(aux_BNC, rgb_BNC, hw), hw)
        fused_BCHW = pointwise(self.merge, torch.cat((rgb_told_BCHW, aux_told_BCHW), dim=1))
        return route(self.flow, fused=fused_BCHW, rgb_rectified=rgb_told_BCHW, aux_rectified=aux_told_BCHW)
