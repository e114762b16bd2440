"""A modality as one plane of grey, whatever is in it: what outlines and difference hashes are taken from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LARGEST = 255.0
"""Of a float: bytes that nobody divided by 255 still have their outlines, and no square of a slope overflows."""


def grey_levels(x_CHW: Tensor) -> NDArray[np.float32]:
    """float32 [H, W] on the scale 0..255: the mean of the channels.

    Args:
        x_CHW: uint8 in 0..255 or float in 0..1; what is not finite counts as 0, what leaves 0..`LARGEST` is cut off.
    """
    grey_HW: NDArray[np.float32] = x_CHW.float().mean(dim=0).nan_to_num(0.0, posinf=0.0, neginf=0.0).numpy()
    return grey_HW.clip(0, LARGEST) * np.float32(255) if x_CHW.is_floating_point() else grey_HW
