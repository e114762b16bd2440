"""Layers that several decoders have in common.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(in_channels: int, out_channels: int, *, kernel: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; the size of the map stays."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def separable_conv(in_channels: int, out_channels: int, *, dilation: int = 1) -> nn.Sequential:
    """A 3x3 convolution of each channel for itself, then a 1x1 convolution, each with batch norm and ReLU (Xception,
    arXiv 1610.02357); the size of the map stays."""
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(in_channels), nn.ReLU(), *conv_norm(in_channels, out_channels)
    )


def classifier(in_channels: int, num_outputs: int, *, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, and a logit per output and cell."""
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(in_channels, num_outputs, 1))


def resized(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    """The map at the size of another one, bilinear, cells centred (`align_corners=False`)."""
    if x_BCHW.shape[-2:] == like_BCHW.shape[-2:]:
        return x_BCHW
    return F.interpolate(x_BCHW, size=like_BCHW.shape[-2:], mode="bilinear", align_corners=False)
