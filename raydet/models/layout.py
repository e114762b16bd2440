"""One memory layout for the whole encoder: tokens [B, N, C] and maps [B, C, H, W] are views of the same bytes.

Attention and MLPs need tokens, convolutions need maps. With maps in `channels_last` the conversion is free; a
contiguous NCHW map would be copied twice per block.

For a batch of one a view may give the dimension of length 1 any stride, and a convolution treats the map as NCHW if the
stride is not that of channels_last (a depthwise 3x3 on a CPU is then up to nine times slower). Therefore channels are
permuted, never transposed and folded.

Legend: B batch, C channels, H W map, N = H W tokens in row-major order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_tokens(x_BCHW: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, N, C]: a view if the map is channels_last, otherwise a copy.

    >>> maps = torch.zeros(2, 8, 3, 5).to(memory_format=torch.channels_last)
    >>> as_tokens(maps).data_ptr() == maps.data_ptr(), as_tokens(maps).is_contiguous()
    (True, True)
    """
    return x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)


def as_map(x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
    """[B, N, C] -> [B, C, H, W], channels_last: always a view.

    >>> maps = as_map(torch.zeros(1, 15, 8), (3, 5))
    >>> maps.shape, maps.stride()
    (torch.Size([1, 8, 3, 5]), (120, 1, 40, 8))
    """
    return x_BNC.unflatten(1, hw).permute(0, 3, 1, 2)


def pointwise(conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """A 1x1 convolution of a channels_last map as a matrix product over channels.

    PyTorch's own CPU implementation depends on batch size and threads, and can be slow.

    >>> conv, maps = nn.Conv2d(8, 4, 1), torch.rand(2, 8, 3, 5).to(memory_format=torch.channels_last)
    >>> torch.allclose(pointwise(conv, maps), conv(maps), atol=1e-6)
    True
    """
    return F.linear(x_BCHW.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def hw_of(x_BCHW: Tensor) -> tuple[int, int]:
    return x_BCHW.shape[-2], x_BCHW.shape[-1]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which matrix products keep the precision of their inputs."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
