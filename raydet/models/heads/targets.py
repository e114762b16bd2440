"""Ground truth and precision for both stages of the head.

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
    """int64, 1..K; inside the head 0 is background."""
    is_real_BG: Tensor


def targets_of(batch: Batch) -> Targets:
    """Ground truth of a batch, with labels counted from 1."""
    row_G = torch.arange(batch.labels.shape[1], device=batch.labels.device)
    return Targets(batch.boxes_xyxy, batch.labels + 1, row_G < batch.counts[:, None])


def full_precision(x: Tensor) -> Tensor:
    """The tensor in fp32, or unchanged if it is fp64."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def nan_if_boxes_not_finite(loss: Tensor, boxes: Tensor) -> Tensor:
    """Turn the loss into NaN if a box is not finite, since such a box overlaps nothing and would count as background.

    Without a host sync: 0 times the sum is NaN then, and 0 otherwise.
    """
    return loss * (1.0 + 0.0 * boxes.sum())
