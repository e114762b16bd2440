"""Convert any modality to grey levels, from which outlines and difference hashes are computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LARGEST = 255.0
"""Clip of float values: images wrongly in 0..255 keep their outlines, and squared gradients do not overflow."""


def grey_levels(x_CHW: Tensor) -> NDArray[np.float32]:
    """The mean of the channels, float32 [H, W] on a scale of 0..255.

    Args:
        x_CHW: uint8 in 0..255 or float in 0..1; not finite values count as 0, others are clipped to 0..`LARGEST`.
    """
    grey_HW: NDArray[np.float32] = x_CHW.float().mean(dim=0).nan_to_num(0.0, posinf=0.0, neginf=0.0).numpy()
    return grey_HW.clip(0, LARGEST) * np.float32(255) if x_CHW.is_floating_point() else grey_HW
