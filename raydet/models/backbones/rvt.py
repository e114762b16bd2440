"""The backbone of RVT without its memory: MaxViT attention on maps of events, one stage at a time.

Recurrent Vision Transformers for Object Detection with Event Cameras (RVT), arXiv 2212.05598; attention over windows
and over a grid as in MaxViT: Multi-Axis Vision Transformer, arXiv 2204.01697. Written from the papers and from measured
behaviour; no weights are shipped. With the memory of `recurrent` behind every stage this is RVT's recurrent backbone.

Departures from RVT:
1. The size of a window follows from that of the map, so one backbone serves every canvas: see `RVTStage`.
2. The scale per channel of a branch (LayerScale, arXiv 2103.17239) is multiplied into the weights of the branch's last
   layer, which is the same function without a copy of the branch.
3. Attention runs through PyTorch's fused kernels.
4. `nano` is our own size, for demos and tests.

Legend: B images, C channels, H W map, N = H W tokens, P windows of all images, S tokens of a window, A heads,
D = C / A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raydet.errors import ConfigError
from raydet.models.backbones.recurrent import RecurrentStage
from raydet.models.backbones.stage import STRIDES, Four, Stage
from raydet.models.layout import as_map, as_tokens, hw_of

LAYER_SCALE = 1e-5
"""Initial scale of every branch."""
MLP_RATIO = 4


@dataclass(frozen=True, slots=True)
class RVTVariant:
    """Sizes of one RVT variant; one entry per stage."""

    channels: Four
    head_dim: int
    strides: Four = STRIDES
    sr_ratios: Four = (8, 4, 2, 1)
    """For attention between two streams only, as in MiT."""

    @property
    def num_heads(self) -> Four:
        first, second, third, fourth = (channels // self.head_dim for channels in self.channels)
        return first, second, third, fourth


RVT_VARIANTS: dict[str, RVTVariant] = {
    "nano": RVTVariant(channels=(16, 32, 64, 128), head_dim=16),
    "tiny": RVTVariant(channels=(32, 64, 128, 256), head_dim=32),
    "small": RVTVariant(channels=(48, 96, 192, 384), head_dim=24),
    "base": RVTVariant(channels=(64, 128, 256, 512), head_dim=32),
}


class PatchEmbed(nn.Module):
    """Overlapping patch embedding: a strided convolution without bias, then a layer norm over channels."""

    def __init__(self, *, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        kernel = 2 * (stride - 1) + 1
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, C, H / stride, W / stride], rounded up."""
        x_BCHW = self.proj(x_BCHW)
        # Under autocast the convolution returns bf16; the residual stream stays in the precision of the weights.
        x_BNC = as_tokens(x_BCHW).to(self.norm.weight.dtype)
        return as_map(self.norm(x_BNC), hw_of(x_BCHW))


class Transformer(nn.Module):
    """Attention among the tokens of each window, then an MLP, both pre-norm with a scale per channel.

    Args:
        normed: False leaves out the first norm, for tokens that have just been normalised.
    """

    def __init__(self, *, channels: int, head_dim: int, normed: bool = True) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1 = nn.LayerNorm(channels) if normed else nn.Identity()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.scale1 = nn.Parameter(nn.init.constant_(self.proj.bias.new_empty(channels), LAYER_SCALE))
        self.norm2 = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, MLP_RATIO * channels)
        self.contract = nn.Linear(MLP_RATIO * channels, channels)
        self.scale2 = nn.Parameter(nn.init.constant_(self.proj.bias.new_empty(channels), LAYER_SCALE))

    def forward(self, x_PSC: Tensor) -> Tensor:
        # Per head: query, key, value.
        qkv_PASD = self.qkv(self.norm1(x_PSC)).unflatten(2, (-1, 3 * self.head_dim)).transpose(1, 2)
        out_PASD = F.scaled_dot_product_attention(*qkv_PASD.chunk(3, dim=3))
        x_PSC = x_PSC + _scaled(self.proj, self.scale1, out_PASD.transpose(1, 2).flatten(2))
        return x_PSC + _scaled(self.contract, self.scale2, F.gelu(self.expand(self.norm2(x_PSC))))


def _scaled(layer: nn.Linear, scale_C: Tensor, x: Tensor) -> Tensor:
    """`scale_C * layer(x)`."""
    return F.linear(x, scale_C[:, None] * layer.weight, scale_C * layer.bias)


class MaxViTBlock(nn.Module):
    """Attention within windows of neighbouring tokens, then within grids of tokens that are spread over the map."""

    def __init__(self, *, channels: int, head_dim: int, normed: bool = True) -> None:
        super().__init__()
        self.window = Transformer(channels=channels, head_dim=head_dim, normed=normed)
        self.grid = Transformer(channels=channels, head_dim=head_dim)

    def forward(self, x_BCHW: Tensor, window_hw: tuple[int, int]) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], channels_last.

        Args:
            window_hw: tokens of a window, which divide the map; a grid has as many.
        """
        height, width = window_hw
        num_rows, num_columns = x_BCHW.shape[2] // height, x_BCHW.shape[3] // width
        # i, j count windows, h, w the tokens in one; a map is a view of [B, i, h, j, w, C], or of [B, h, i, w, j, C].
        x_BihjwC = (
            x_BCHW.permute(0, 2, 3, 1).unflatten(2, (num_columns, width)).unflatten(1, (num_rows, height))
        )
        x_BijhwC = x_BihjwC.transpose(2, 3)
        x_PSC = self.window(x_BijhwC.flatten(3, 4).flatten(0, 2))
        x_BihjwC = x_PSC.view(x_BijhwC.shape).transpose(2, 3)
        x_BHWC = x_BihjwC.flatten(3, 4).flatten(1, 2)
        x_BhiwjC = x_BHWC.unflatten(2, (width, num_columns)).unflatten(1, (height, num_rows))
        x_BijhwC = x_BhiwjC.permute(0, 2, 4, 1, 3, 5)
        x_PSC = self.grid(x_BijhwC.flatten(3, 4).flatten(0, 2))
        x_BhiwjC = x_PSC.view(x_BijhwC.shape).permute(0, 3, 1, 4, 2, 5)
        return x_BhiwjC.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class RVTStage(Stage):
    """Patch embedding and one block.

    A window has height / `partition_px` x width / `partition_px` tokens at every stage, where height and width are
    those of the image. RVT has 64 pixels at 720 x 1280, halved and padded to 384 x 640, and 32 at 240 x 304, padded to
    256 x 320.

    Args:
        stride: image pixels per cell of the map.
        factor: of these, those that this stage adds.
    """

    def __init__(
        self, *, in_channels: int, channels: int, head_dim: int, stride: int, factor: int, partition_px: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride
        self.partition_px = partition_px
        self.patch_embed = PatchEmbed(in_channels=in_channels, channels=channels, stride=factor)
        self.blocks = nn.ModuleList([MaxViTBlock(channels=channels, head_dim=head_dim, normed=False)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H', W'].

        Raises:
            ConfigError: a side of the image is no multiple of `partition_px`.
        """
        x_BCHW = self.patch_embed(x_BCHW)
        height, width = (side * self.stride for side in hw_of(x_BCHW))
        if height % self.partition_px or width % self.partition_px:
            raise ConfigError(
                f"RVT expected images whose sides are multiples of {self.partition_px}, got {height} x {width}; "
                "set data.canvas_hw, to which images are padded, or model.backbone.partition_px"
            )
        window_hw = height // self.partition_px, width // self.partition_px
        for block in self.blocks:
            x_BCHW = block(x_BCHW, window_hw)
        return x_BCHW

    def block_groups(self) -> list[list[nn.Module]]:
        return [list(self.blocks)]


def rvt_sizes(variant: str, *, patch: int) -> RVTVariant:
    """The sizes of a variant with its first stride.

    >>> rvt_sizes("tiny", patch=2).strides
    (2, 4, 8, 16)
    """
    sizes = RVT_VARIANTS[variant]
    return RVTVariant(sizes.channels, sizes.head_dim, strides=(patch, 2 * patch, 4 * patch, 8 * patch))


def rvt_stages(
    *,
    variant: RVTVariant,
    in_channels: int,
    partition_px: int,
    memory: Literal["lstm", "none"],
    num_stages: int = 4,
) -> nn.ModuleList:
    """The first `num_stages` stages of one stream."""
    stages = nn.ModuleList()
    for stage in range(num_stages):
        made = RVTStage(
            in_channels=variant.channels[stage - 1] if stage else in_channels,
            channels=variant.channels[stage],
            head_dim=variant.head_dim,
            stride=variant.strides[stage],
            factor=2 if stage else variant.strides[0],
            partition_px=partition_px,
        )
        stages.append(RecurrentStage(made) if memory == "lstm" else made)
    return stages
