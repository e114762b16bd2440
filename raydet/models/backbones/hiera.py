"""Hiera as a chain of layers: the backbone of Segment Anything 2, which timm calls `sam2_hiera_*`.

Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles, arXiv 2306.00989; its positions are those of
Window Attention is not Enough, arXiv 2311.05613: a small map that is resized to the grid of patches, plus a window that
is repeated over the grid. The layers and their initial weights are timm's (Apache-2.0, imported), as are the published
weights. timm's model adds the positions between two layers; here the first layer does it, so that the model is a chain.

Departure from timm: the resizing is a product with a matrix per axis, whose gradient is the same in every run on a GPU.

Legend: B batch, C channels, H W grid of patches, h w stored positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor, nn

from raydet.errors import ConfigError

MULTIPLE_PX = 32
"""Of both sides of an image: windows are pooled, so every pool has to meet whole cells."""


class PositionedPatches(nn.Module):
    """Patches and their positions."""

    def __init__(self, model: HieraDet) -> None:
        super().__init__()
        # The names are those of the published weights.
        self.proj = model.patch_embed.proj
        self.pos_embed = model.pos_embed
        self.pos_embed_window = model.pos_embed_window

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, 4 H, 4 W] -> [B, H, W, C].

        Raises:
            ConfigError: a side of the image is no multiple of 32.
        """
        if any(side % MULTIPLE_PX for side in image.shape[2:]):
            raise ConfigError(
                f"sam2_hiera takes images whose sides are multiples of {MULTIPLE_PX}, got "
                f"{image.shape[2]} x {image.shape[3]}; set data.canvas_hw"
            )
        patches_BCHW = self.proj(image)
        height, width = patches_BCHW.shape[2:]
        rows_Hh, columns_Ww = (
            _bicubic_matrix(size, stored, like=self.pos_embed)
            for size, stored in zip((height, width), self.pos_embed.shape[2:], strict=True)
        )
        position_1CHW = rows_Hh @ self.pos_embed @ columns_Ww.mT
        window_h, window_w = self.pos_embed_window.shape[2:]
        window_1CHW = self.pos_embed_window.tile(height // window_h, width // window_w)
        return (patches_BCHW + position_1CHW + window_1CHW).permute(0, 2, 3, 1)


def make_chain(model: HieraDet) -> None:
    """Move the positions of a model into its first layer."""
    model.patch_embed = PositionedPatches(model)
    del model.pos_embed, model.pos_embed_window
    model._pos_embed = lambda x: x  # not a module: those do not hide a method


@torch.no_grad()
def _bicubic_matrix(size: int, stored: int, *, like: Tensor) -> Tensor:
    """[size, stored]: the weight of every stored position at every position of the grid, as F.interpolate has it."""
    one_hot_11hh = torch.eye(stored, device=like.device, dtype=torch.float64)[None, None]
    resized_11Hh = F.interpolate(one_hot_11hh, size=(size, stored), mode="bicubic")
    return resized_11Hh[0, 0].to(like.dtype)
