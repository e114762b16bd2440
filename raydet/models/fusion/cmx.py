"""CMX: feature rectification (FRM), then feature fusion by cross-attention (FFM).

CMX: Cross-Modal Fusion for RGB-X Semantic Segmentation with Transformers, arXiv 2203.04838. Written from the paper
and from the published runs' measured behaviour.

Departures from the paper:
1. FRM's two additions are one, x1 + x2 (0.5 w_channel + 0.5 w_spatial), and its concatenated input is never built: a
   matrix product with [x1, x2] is the sum of two.
2. FFM's keys k = u Wk and values v = u Wv are never built: the context needs only k^T v = Wk^T (u^T u) Wv, and u^T u
   is a C x C matrix. The attended tokens u context are not built either: the context is projected first.
3. Where several pixels share a channel's maximum, its gradient is split among them (`amax`) instead of going to one.

Legend: B batch, C channels, H W map, N = H W tokens, A attention heads, D = C / A; K is D of the keys' side, E is 2C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.fusion.base import Flow, Fusion, FusionOutput, route
from raydet.models.init import init_segformer
from raydet.models.layout import as_map, as_tokens, hw_of, pointwise, without_autocast


class FRM(nn.Module):
    """Each stream is corrected by the other, gated per channel and pixel: gate 0 from stream 1 into 2, gate 1 back."""

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
        x1_BNC, x2_BNC, hw = as_tokens(x1_BCHW), as_tokens(x2_BCHW), hw_of(x1_BCHW)
        pooled = (x1_BNC.mean(dim=1), x2_BNC.mean(dim=1), x1_BNC.amax(dim=1), x2_BNC.amax(dim=1))
        channel_B2C = self.lambda_channel * self.channel_gate(torch.cat(pooled, dim=1)).unflatten(1, (2, -1))
        spatial_BN2 = self.lambda_spatial * self._spatial(x1_BNC, x2_BNC)
        into_2_BNC, into_1_BNC = (channel_B2C[:, None, i] + spatial_BN2[..., i : i + 1] for i in (0, 1))
        out1_BNC = torch.addcmul(x1_BNC, x2_BNC, into_1_BNC)
        out2_BNC = torch.addcmul(x2_BNC, x1_BNC, into_2_BNC)
        return as_map(out1_BNC, hw), as_map(out2_BNC, hw)

    def _spatial(self, x1_BNC: Tensor, x2_BNC: Tensor) -> Tensor:
        mix, relu, gate, sigmoid = self.spatial_gate
        assert isinstance(mix, nn.Conv2d)
        assert isinstance(gate, nn.Conv2d)
        weight1, weight2 = mix.weight.flatten(1).chunk(2, dim=1)
        hidden = F.linear(x1_BNC.flatten(0, 1), weight1, mix.bias)
        hidden = torch.addmm(hidden, x2_BNC.flatten(0, 1), weight2.t())
        gates = F.linear(relu(hidden), gate.weight.flatten(1), gate.bias)
        return sigmoid(gates).unflatten(0, x1_BNC.shape[:2])


class CrossAttention(nn.Module):
    """Linear-cost attention: the streams exchange D x D contexts instead of N x N weights."""

    def __init__(self, *, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.key_value1 = nn.Linear(channels, 2 * channels, bias=False)
        self.key_value2 = nn.Linear(channels, 2 * channels, bias=False)

    def forward(self, u1_BNC: Tensor, u2_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Each stream's tokens attended with the other stream's context; [B, N, C] each."""
        mix1_BCC, mix2_BCC = self.mixes(u1_BNC, u2_BNC)
        return u1_BNC @ mix1_BCC, u2_BNC @ mix2_BCC

    def mixes(self, u1_BNC: Tensor, u2_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """The other stream's context as a block-diagonal matrix [B, C, C], for stream 1 and stream 2."""
        context1_BAKD = self.context(self.key_value1, u1_BNC)
        context2_BAKD = self.context(self.key_value2, u2_BNC)
        return _block_diagonal(context2_BAKD), _block_diagonal(context1_BAKD)

    def context(self, key_value: nn.Linear, u_BNC: Tensor) -> Tensor:
        """softmax(k^T v / sqrt(D)) over the keys' channels K: every column of [B, A, K, D] sums to 1."""
        # Never in lower precision: the sums run over all tokens and are exponentiated.
        with without_autocast(u_BNC.device):
            u_BNC = u_BNC.to(key_value.weight.dtype)
            gram_B1CC = (u_BNC.transpose(1, 2) @ u_BNC)[:, None]
            key_AKC, value_ADC = key_value.weight.unflatten(0, (2, self.num_heads, -1))
            context_BAKD = key_AKC @ gram_B1CC @ value_ADC.transpose(1, 2)
            return (context_BAKD * self.scale).softmax(dim=-2)


def _block_diagonal(context_BAKD: Tensor) -> Tensor:
    """[B, A, D, D] -> [B, C, C]."""
    heads = context_BAKD.shape[1]
    eye_AA = torch.eye(heads, dtype=context_BAKD.dtype, device=context_BAKD.device)
    return (context_BAKD[:, :, :, None] * eye_AA[:, None, :, None]).flatten(3, 4).flatten(1, 2)


class CrossPath(nn.Module):
    """Half of each stream's projection is kept, the other half attends to the other stream's context."""

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
        yu1_BNE, yu2_BNE = F.relu(self.project1(x1_BNC)), F.relu(self.project2(x2_BNC))
        mix1_BCC, mix2_BCC = self.cross.mixes(yu1_BNE.chunk(2, dim=2)[1], yu2_BNE.chunk(2, dim=2)[1])
        out1_BNC = self.norm1(x1_BNC + _end_projection(self.end1, yu1_BNE, mix1_BCC))
        out2_BNC = self.norm2(x2_BNC + _end_projection(self.end2, yu2_BNE, mix2_BCC))
        return out1_BNC, out2_BNC


def _end_projection(end: nn.Linear, yu_BNE: Tensor, mix_BCC: Tensor) -> Tensor:
    """end([y, u mix]), with the mix multiplied into the weights, image by image."""
    keep_CC, attend_CC = end.weight.t().chunk(2, dim=0)
    weight_BEC = torch.cat((keep_CC.expand_as(mix_BCC), (mix_BCC @ attend_CC).to(keep_CC.dtype)), dim=1)
    return yu_BNE @ weight_BEC + end.bias


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
        mix, depthwise, relu, project, norm = self.branch
        assert isinstance(mix, nn.Conv2d)
        assert isinstance(project, nn.Conv2d)
        branch_BCHW = norm(pointwise(project, relu(depthwise(pointwise(mix, x_BCHW)))))
        return self.norm(pointwise(self.shortcut, x_BCHW) + branch_BCHW)


class FFM(nn.Module):
    """Cross-path attention, then channel embedding of the two results."""

    def __init__(self, *, channels: int, num_heads: int) -> None:
        super().__init__()
        self.cross_path = CrossPath(channels=channels, num_heads=num_heads)
        self.channel_embed = ChannelEmbed(channels)
        # Here, not only in the encoder: with init="seed" only FFM is initialised, as in the published runs.
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
