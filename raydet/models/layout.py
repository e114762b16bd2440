"""One memory layout for the whole encoder: tokens [B, N, C] and maps [B, C, H, W] are views of the same bytes.

Attention and MLPs want tokens, convolutions want maps. With maps in `channels_last` the change costs nothing; a
contiguous NCHW map would be copied twice per block.

Legend: B batch, C channels, H W map, N = H W tokens in row-major order.
"""

from __future__ import annotations

from torch import Tensor


def as_tokens(x_BCHW: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, N, C]: a view where the map is channels_last, a copy elsewhere.

    >>> import torch
    >>> maps = torch.zeros(2, 8, 3, 5).to(memory_format=torch.channels_last)
    >>> as_tokens(maps).data_ptr() == maps.data_ptr(), as_tokens(maps).is_contiguous()
    (True, True)
    """
    return x_BCHW.flatten(2).transpose(1, 2)


def as_map(x_BNC: Tensor, hw: tuple[int, int]) -> Tensor:
    """[B, N, C] -> [B, C, H, W], channels_last: always a view.

    >>> import torch
    >>> as_map(torch.zeros(2, 15, 8), (3, 5)).shape
    torch.Size([2, 8, 3, 5])
    """
    return x_BNC.transpose(1, 2).unflatten(2, hw)


def hw_of(x_BCHW: Tensor) -> tuple[int, int]:
    """Height and width of a map."""
    return x_BCHW.shape[-2], x_BCHW.shape[-1]
