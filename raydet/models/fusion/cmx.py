"""CMX: feature rectification (FRM), then feature fusion by cross-attention (FFM): the baseline.

CMX: Cross-Modal Fusion for RGB-X Semantic Segmentation with Transformers, arXiv 2203.04838. Written from the paper
and from the published runs' measured behaviour.

Departures from the paper:
1. The two additions of FRM are one: x1 + x2 (0.5 w_channel + 0.5 w_spatial), the same sum in one pass over the map.
2. Where several pixels share a channel's maximum, its gradient is split among them (`amax`) instead of going to one.

Legend: B batch, C channels, H W map, N = H W tokens, A attention heads, D = C / A; K is D of the keys' side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.init import init_segformer
from raydet.models.layout import as_map, as_tokens, hw_of


class FRM(nn.Module):
    """Each stream is corrected by the other one, gated per channel and per pixel.

    Gate 0 governs what flows from stream 1 into stream 2, gate 1 the way back.
    """

    def __init__(self, channels: int, *, lambda_channel: float = 0.5, lambda_spatial: float = 0.5) -> None:
        super().__init__()
        self.lambda_channel = lambda_channel
        self.lambda_spatial = lambda_spatial
        self.channel_gate = nn.Sequential(
            nn.Linear(4 * channels, 4 * channels),
            nn.ReLU(),
            nn.Linear(4 * channels, 2 * channels),
            nn.Sigmoid(),
        )
        self.spatial_gate = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 2, 1), nn.Sigmoid()
        )

    def forward(self, x1_BCHW: Tensor, x2_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat((x1_BCHW, x2_BCHW), dim=1)
        pooled = torch.cat((both.mean(dim=(2, 3)), both.amax(dim=(2, 3))), dim=1)
        channel_B2C11 = self.channel_gate(pooled).view(len(both), 2, -1, 1, 1)
        spatial_B21HW = self.spatial_gate(both).unsqueeze(2)
        gate_B2CHW = self.lambda_channel * channel_B2C11 + self.lambda_spatial * spatial_B21HW
        return x1_BCHW + x2_BCHW * gate_B2CHW[:, 1], x2_BCHW + x1_BCHW * gate_B2CHW[:, 0]


class CrossAttention(nn.Module):
    """Linear-cost attention: the streams swap their D x D contexts instead of N x N weights."""

    def __init__(self, *, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.key_value1 = nn.Linear(channels, 2 * channels, bias=False)
        self.key_value2 = nn.Linear(channels, 2 * channels, bias=False)

    def forward(self, u1_BNC: Tensor, u2_BNC: Tensor) -> tuple[Tensor, Tensor]:
        context1_BAKD = self.context(self.key_value1(u1_BNC))
        context2_BAKD = self.context(self.key_value2(u2_BNC))
        return self._read(u1_BNC, context2_BAKD), self._read(u2_BNC, context1_BAKD)

    def context(self, kv_BNC: Tensor) -> Tensor:
        """softmax(k^T v / sqrt(D)) over the keys' channels K: every column of [B, A, K, D] sums to 1."""
        k_BNAD, v_BNAD = kv_BNC.unflatten(2, (2, self.num_heads, -1)).unbind(2)
        context_BAKD = k_BNAD.permute(0, 2, 3, 1) @ v_BNAD.transpose(1, 2)
        return (context_BAKD * self.scale).softmax(dim=-2)

    def _read(self, q_BNC: Tensor, context_BAKD: Tensor) -> Tensor:
        q_BAND = q_BNC.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return (q_BAND @ context_BAKD).transpose(1, 2).flatten(2)


class CrossPath(nn.Module):
    """Half of each stream's projection is kept, the other half reads the other stream's context."""

    def __init__(self, *, channels: int, num_heads: int) -> None:
        super().__init__()
        self.project1 = nn.Linear(channels, 2 * channels)
        self.project2 = nn.Linear(channels, 2 * channels)
        self.cross = CrossAttention(channels=channels, num_heads=num_heads)
        self.end1 = nn.Linear(2 * channels, channels)
        self.end2 = nn.Linear(2 * channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x1_BNC: Tensor, x2_BNC: Tensor) -> tuple[Tensor, Tensor]:
        y1_BNC, u1_BNC = F.relu(self.project1(x1_BNC)).chunk(2, dim=-1)
        y2_BNC, u2_BNC = F.relu(self.project2(x2_BNC)).chunk(2, dim=-1)
        v1_BNC, v2_BNC = self.cross(u1_BNC, u2_BNC)
        out1_BNC = self.norm1(x1_BNC + self.end1(torch.cat((y1_BNC, v1_BNC), dim=-1)))
        out2_BNC = self.norm2(x2_BNC + self.end2(torch.cat((y2_BNC, v2_BNC), dim=-1)))
        return out1_BNC, out2_BNC


class ChannelEmbed(nn.Module):
    """2C -> C: a 1x1 shortcut plus a branch with a depthwise 3x3 convolution, batch-normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.branch = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.shortcut(x_BCHW) + self.branch(x_BCHW))


class FFM(nn.Module):
    """Cross-path attention, then channel embedding of the two results."""

    def __init__(self, *, channels: int, num_heads: int) -> None:
        super().__init__()
        self.cross_path = CrossPath(channels=channels, num_heads=num_heads)
        self.channel_embed = ChannelEmbed(channels)
        # Here and not only in the encoder: with init="seed" FFM alone is set, as in the published runs.
        self.apply(init_segformer)

    def forward(self, x1_BCHW: Tensor, x2_BCHW: Tensor) -> Tensor:
        tokens = self.cross_path(as_tokens(x1_BCHW), as_tokens(x2_BCHW))
        return self.channel_embed(as_map(torch.cat(tokens, dim=-1), hw_of(x1_BCHW)))


class CMX(Fusion):
    """FRM, then FFM on the rectified maps."""

    def __init__(self, *, channels: int, num_heads: int, flow: Flow = "rectified") -> None:
        super().__init__()
        self.flow: Flow = flow
        self.frm = FRM(channels)
        self.ffm = FFM(channels=channels, num_heads=num_heads)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        rgb_BCHW, aux_BCHW = self.frm(rgb_BCHW, aux_BCHW)
        fused_BCHW = self.ffm(rgb_BCHW, aux_BCHW)
        return route(self.flow, fused=fused_BCHW, rgb_rectified=rgb_BCHW, aux_rectified=aux_BCHW)
