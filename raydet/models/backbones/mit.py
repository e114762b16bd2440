"""Mix Transformer (MiT): the hierarchical encoder of SegFormer, one stage at a time.

SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers, arXiv 2105.15203. Written from the
paper and from measured behaviour; no weights are shipped.

Departures from the paper:
1. The stages are separate modules that take maps, because a dual-stream encoder fuses between them.
2. Attention runs through PyTorch's fused kernels; the numbers are those of softmax(q k^T / sqrt(D)) v.
3. `nano` is our own size, for demos and tests.

Layer norms differ in eps, as in the training of the published weights: 1e-6 in the blocks and after a stage, PyTorch's
1e-5 after a patch embedding and after the reduction of keys and values.

Legend: B batch, C channels, H W map, N = H W tokens, M tokens after the reduction, A attention heads, D = C / A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.backbones.stage import STRIDES, Four, Stage
from raydet.models.layout import as_map, as_tokens, hw_of

NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class MiTVariant:
    """Sizes of one MiT variant; one entry per stage."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    sr_ratios: tuple[int, int, int, int] = (8, 4, 2, 1)
    """Factor per side by which the grid of keys and values is reduced."""
    strides: Four = STRIDES
    mlp_ratio: int = 4


MIT_VARIANTS: dict[str, MiTVariant] = {
    "nano": MiTVariant(channels=(16, 32, 80, 128), depths=(1, 1, 1, 1)),
    "b0": MiTVariant(channels=(32, 64, 160, 256), depths=(2, 2, 2, 2)),
    "b1": MiTVariant(channels=(64, 128, 320, 512), depths=(2, 2, 2, 2)),
    "b2": MiTVariant(channels=(64, 128, 320, 512), depths=(3, 4, 6, 3)),
    "b3": MiTVariant(channels=(64, 128, 320, 512), depths=(3, 4, 18, 3)),
    "b4": MiTVariant(channels=(64, 128, 320, 512), depths=(3, 8, 27, 3)),
    "b5": MiTVariant(channels=(64, 128, 320, 512), depths=(3, 6, 40, 3)),
}


class PatchEmbed(nn.Module):
    """Overlapping patch embedding: a strided convolution, then a layer norm over channels."""

    def __init__(self, *, in_channels: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [B, N, C] and the height and width of their grid."""
        x_BCHW = self.proj(x_BCHW)
        # Under autocast the convolution returns bf16; the residual stream, a sum of dozens of branches, stays in the
        # precision of the weights.
        x_BNC = as_tokens(x_BCHW).to(self.norm.weight.dtype)
        return self.norm(x_BNC), hw_of(x_BCHW)


class EfficientAttention(nn.Module):
    """Multi-head self-attention; keys and values come from a grid reduced by a strided convolution."""

    def __init__(self, *, channels: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.reduce: nn.Conv2d | None = None
        if sr_ratio > 1:
            # No padding: cells beyond the last whole sr x sr patch are queries, but neither keys nor values.
            self.reduce = nn.Conv2d(channels, channels, sr_ratio, sr_ratio)
            self.reduce_norm = nn.LayerNorm(channels)

    def forward(self, x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
        return self._attend(x_BNC, x_BNC, hw)

    def _attend(self, query_BNC: Tensor, context_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
        q_BNAD = self.query(query_BNC).unflatten(2, (self.num_heads, -1))
        key_value = self.key_value(self._reduced(context_BNC, hw))
        k_BMAD, v_BMAD = key_value.unflatten(2, (2, self.num_heads, -1)).unbind(2)
        out_BNAD = attend(q_BNAD, k_BMAD, v_BMAD, num_chunks=num_chunks_of(q_BNAD))
        return self.proj(out_BNAD.flatten(2))

    def _reduced(self, x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
        if self.reduce is None:
            return x_BNC
        return self.reduce_norm(as_tokens(self.reduce(as_map(x_BNC, hw))))


def attend(q_BNAD: Tensor, k_BMAD: Tensor, v_BMAD: Tensor, *, num_chunks: int = 1) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: [B, N, A, D]; queries are independent and may be split into chunks."""
    if num_chunks > 1:
        q_BNAD = q_BNAD.unflatten(1, (num_chunks, -1)).flatten(0, 1)
        k_BMAD, v_BMAD = (x.repeat_interleave(num_chunks, dim=0) for x in (k_BMAD, v_BMAD))
    out_BAND = F.scaled_dot_product_attention(
        q_BNAD.transpose(1, 2), k_BMAD.transpose(1, 2), v_BMAD.transpose(1, 2)
    )
    out_BNAD = out_BAND.transpose(1, 2)
    return out_BNAD.unflatten(0, (-1, num_chunks)).flatten(1, 2) if num_chunks > 1 else out_BNAD


def num_chunks_of(q_BNAD: Tensor) -> int:
    """Number of query chunks that keeps all CPU threads busy: the backward pass uses one thread per (sample, head)."""
    if torch.compiler.is_compiling() or q_BNAD.device.type != "cpu":
        return 1
    batch, tokens, heads, _ = q_BNAD.shape
    most = -(-torch.get_num_threads() // (batch * heads))
    return next(chunks for chunks in range(most, 0, -1) if tokens % chunks == 0)


class MixFFN(nn.Module):
    """Linear, depthwise 3x3 convolution (which encodes position), GELU, linear."""

    def __init__(self, *, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = nn.Linear(hidden, channels)

    def forward(self, x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
        hidden = as_tokens(self.depthwise(as_map(self.expand(x_BNC), hw)))
        return self.contract(F.gelu(hidden))


def draw_keep(rate: float, x_BNC: Tensor) -> Tensor | None:
    """Stochastic depth (arXiv 1603.09382): factors of a block's two branches, 0 or 1 / (1 - rate) per sample.

    Returns:
        [2, B, 1, 1], attention first, or None if the rate is 0.
    """
    if rate == 0.0:
        return None
    # Two draws, not one of twice the size, which generators do not promise to fill with the same numbers.
    keep_2B11 = torch.stack(
        [x_BNC.new_empty(len(x_BNC), 1, 1).bernoulli_(1.0 - rate) for _ in ("attention", "ffn")]
    )
    return keep_2B11 / (1.0 - rate)


class Block(nn.Module):
    """Pre-norm transformer block; its random numbers are passed in (`draw_keep`), so that it can be recomputed."""

    def __init__(self, *, channels: int, num_heads: int, sr_ratio: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attention = EfficientAttention(channels=channels, num_heads=num_heads, sr_ratio=sr_ratio)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.ffn = MixFFN(channels=channels, ratio=mlp_ratio)

    def forward(self, x_BNC: Tensor, hw: tuple[int, int], keep_2B11: Tensor | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C]; `keep_2B11` scales the two branches of every sample."""
        x_BNC = _add_branch(x_BNC, self.attention(self.norm1(x_BNC), hw), keep_2B11, branch=0)
        return _add_branch(x_BNC, self.ffn(self.norm2(x_BNC), hw), keep_2B11, branch=1)


def _add_branch(x_BNC: Tensor, branch_BNC: Tensor, keep_2B11: Tensor | None, *, branch: int) -> Tensor:
    if keep_2B11 is None:
        return x_BNC + branch_BNC
    return torch.addcmul(x_BNC, branch_BNC, keep_2B11[branch])


class MiTStage(Stage):
    """Patch embedding, blocks, layer norm; half the map's size, a quarter in the first stage.

    Args:
        stage: 0..3.
        in_channels: channels of the image or of the previous stage.
        drop_path_rates: one per block of this stage.
    """

    def __init__(
        self, *, variant: MiTVariant, stage: int, in_channels: int, drop_path_rates: Sequence[float]
    ) -> None:
        super().__init__()
        self.channels = channels = variant.channels[stage]
        kernel, stride = (7, 4) if stage == 0 else (3, 2)
        self.patch_embed = PatchEmbed(
            in_channels=in_channels, channels=channels, kernel=kernel, stride=stride
        )
        self.blocks = nn.ModuleList(
            Block(
                channels=channels,
                num_heads=variant.num_heads[stage],
                sr_ratio=variant.sr_ratios[stage],
                mlp_ratio=variant.mlp_ratio,
            )
            for _ in drop_path_rates
        )
        self.drop_path_rates = tuple(drop_path_rates)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, C, H', W'], channels_last if the input is."""
        x_BNC, hw = self.patch_embed(x_BCHW)
        # Drawn before the first block, branch by branch: no block touches the random generator.
        keeps = [draw_keep(rate, x_BNC) if self.training else None for rate in self.drop_path_rates]
        for block, keep_2B11 in zip(self.blocks, keeps, strict=True):
            x_BNC = block(x_BNC, hw, keep_2B11)
        return as_map(self.norm(x_BNC), hw)

    def block_groups(self) -> list[list[nn.Module]]:
        return [list(self.blocks)]

    def keep_first_blocks(self) -> None:
        self.blocks, self.drop_path_rates = self.blocks[:1], self.drop_path_rates[:1]


def mit_stages(
    *, variant: MiTVariant, in_channels: int, drop_path_rate: float, num_stages: int = 4
) -> nn.ModuleList:
    """The first `num_stages` stages of one stream; drop-path rates grow linearly over the blocks of all four stages."""
    rates = drop_path_rates(variant, drop_path_rate)
    stages = nn.ModuleList()
    for stage in range(num_stages):
        first = sum(variant.depths[:stage])
        stages.append(
            MiTStage(
                variant=variant,
                stage=stage,
                in_channels=variant.channels[stage - 1] if stage else in_channels,
                drop_path_rates=rates[first : first + variant.depths[stage]],
            )
        )
    return stages


def drop_path_rates(variant: MiTVariant, last: float) -> list[float]:
    """One rate per block of all four stages, from 0 to `last` in equal steps.

    >>> drop_path_rates(MIT_VARIANTS["nano"], 0.75)
    [0.0, 0.25, 0.5, 0.75]
    """
    # Not torch.linspace, which would fail when the model is built on the meta device.
    num_blocks = sum(variant.depths)
    return [last * block / (num_blocks - 1) for block in range(num_blocks)]
