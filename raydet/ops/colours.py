"""What a modality looks like.

A modality with one channel is shown in grey, one with three in colour. Any other number is projected: the channels are
spread evenly from red through green to blue, in their order, so that in an image of 20 event windows what fired
early is red and what fired late is blue; the brightest value is made full. Nothing else is stretched: a night is
black.

Legend: C channels, H W image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_colours(x_CHW: Tensor) -> NDArray[np.uint8]:
    """What a modality looks like: uint8 [H, W, 3]; see the head of this file.

    Args:
        x_CHW: uint8 in 0..255 or float in 0..1; what is not finite is shown black.

    >>> as_colours(torch.tensor([[[255]], [[0]], [[0]]], dtype=torch.uint8)).tolist()
    [[[255, 0, 0]]]
    >>> as_colours(torch.tensor([0.0, 0.0, 0.0, 0.5])[:, None, None]).tolist()  # the last of four channels
    [[[0, 0, 255]]]
    """
    scale = 255 if x_CHW.dtype == torch.uint8 else 1
    values_CHW = (x_CHW.float() / scale).nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp(min=0).numpy()
    if len(values_CHW) not in (1, 3):
        values_CHW = np.einsum("ic,chw->ihw", _projection(len(values_CHW)), values_CHW)
        values_CHW = values_CHW / max(float(values_CHW.max()), np.finfo(np.float32).tiny)
    bytes_HWC = np.rint(values_CHW.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.broadcast_to(bytes_HWC, (*bytes_HWC.shape[:2], 3))


def _projection(num_channels: int) -> NDArray[np.float64]:
    """Share of each channel in red, green and blue: [3, C], tents around the first, the middle, the last channel."""
    at_C = np.linspace(0, 2, num_channels)
    return np.clip(1 - np.abs(np.arange(3)[:, None] - at_C), 0, None)
