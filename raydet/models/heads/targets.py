"""Ground truth and precision as both stages of the head want them.

Legend: B batch, G ground truths (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydet.structures import Batch


@dataclass(frozen=True, slots=True)
class Targets:
    """Ground truth of a batch; rows beyond an image's count are padding."""

    boxes_BG4: Tensor
    """x1, y1, x2, y2 in canvas pixels."""
    labels_BG: Tensor
    """int64, 1..K: 0 is background inside of the head."""
    is_real_BG: Tensor
    """False for padding."""


def targets_of(batch: Batch) -> Targets:
    """Ground truth with labels from 1."""
    row_G = torch.arange(batch.labels.shape[1], device=batch.labels.device)
    return Targets(batch.boxes_xyxy, batch.labels + 1, row_G < batch.counts[:, None])


def full_precision(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
