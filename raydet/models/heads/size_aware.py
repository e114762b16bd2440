"""A weight of the box loss that grows for small objects.

The three curves are those of an extension of RVT for eTraM, which detects small road users in events. Areas are in
pixels of the canvas; 1024 and 9216 are COCO's bounds of small and medium objects.
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

SizeAware = Literal["off", "exponential", "step", "linear"]
SMALL_PX2 = 32.0**2
MEDIUM_PX2 = 96.0**2


def size_weight(area: Tensor, kind: SizeAware, factor: float) -> Tensor:
    """The weight of objects of some areas: from `factor`, for the smallest, to 1.

    - `exponential`: falls from the first pixel on and is 1 from 1024 ln(factor) on;
    - `step`: `factor` up to 1024, halfway to 1 up to 9216;
    - `linear`: `factor` up to 9216 / factor, then falls to 1 at 9216.

    >>> size_weight(torch.tensor([0.0, 256.0, 5000.0]), "exponential", 2.0).tolist()
    [2.0, 1.5576015710830688, 1.0]
    """
    match kind:
        case "off":
            return torch.ones_like(area)
        case "exponential":
            weight = factor * torch.exp(-area / SMALL_PX2)
        case "step":
            medium = torch.where(area <= MEDIUM_PX2, (factor + 1) / 2, 1.0)
            weight = torch.where(area <= SMALL_PX2, factor, medium)
        case "linear":
            weight = factor * (1 - (area / MEDIUM_PX2).clamp(max=1)) + 1
        case unreachable:
            assert_never(unreachable)
    return weight.clamp(1, factor)
