"""RoIAlign over a pyramid: every cell of a box is a weighted sum of map rows.

Mask R-CNN, arXiv 1703.06870; Feature Pyramid Networks, arXiv 1612.03144 (assignment of boxes to levels). Sampling
points, weights and borders are those of torchvision's operator (`aligned=False`), whose CPU kernel processes one
channel at a time; an embedding bag over channels-last rows processes all of them.

Legend: K boxes, L levels, C channels, R rows of the table, P cells per side, S samples per side and cell, T = P S.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raydet.ops.rows import RowTable

FINEST_LEVEL = 2
"""Level k has stride 2^k."""


def level_of(boxes_K4: Tensor, num_levels: int) -> Tensor:
    """Index of the level that each box is pooled from, 0 for the finest.

    >>> level_of(torch.tensor([[0.0, 0, 8, 8], [0, 0, 224, 224], [0, 0, 5000, 5000]]), 4)
    tensor([0, 2, 3])
    """
    x1, y1, x2, y2 = boxes_K4.unbind(1)
    side_K = ((x2 - x1) * (y2 - y1)).sqrt()
    level_K = (4 + torch.log2(side_K / 224) + 1e-6).floor()  # equation 1 of the FPN paper
    return (level_K.clamp(FINEST_LEVEL, FINEST_LEVEL + num_levels - 1) - FINEST_LEVEL).long()


def roi_align(
    table: RowTable,
    boxes_K4: Tensor,
    *,
    image_K: Tensor,
    level_K: Tensor,
    strides: Sequence[int],
    cells: int = 7,
    samples: int = 2,
) -> Tensor:
    """Pool boxes (x1, y1, x2, y2 in canvas pixels), bilinearly, from `samples` x `samples` points per cell.

    Args:
        table: the pyramid.
        image_K: index of each box's image in the batch.
        level_K: index of the level that each box is pooled from.
        strides: canvas pixels per cell of each level.

    Returns:
        [K, C, cells, cells], channels_last, in the table's dtype.
    """
    with torch.no_grad():
        scale_K = table.per_level([1.0 / stride for stride in strides], level_K, boxes_K4.dtype)
        height_K = table.per_level([height for height, _ in table.sizes_hw], level_K, torch.int64)
        width_K = table.per_level([width for _, width in table.sizes_hw], level_K, torch.int64)
        first_K = table.per_level(table.starts, level_K, torch.int64) + image_K * height_K * width_K
        x1, y1, x2, y2 = (boxes_K4 * scale_K[:, None]).unbind(1)
        x_KT2, x_weight_KT2 = _taps(x1, x2, width_K, cells, samples)
        y_KT2, y_weight_KT2 = _taps(y1, y2, height_K, cells, samples)
        row_KT2 = first_K[:, None, None] + y_KT2 * width_K[:, None, None]
        index = _expand_axis(row_KT2, cells, samples, dim=0) + _expand_axis(x_KT2, cells, samples, dim=1)
        weight = _expand_axis(y_weight_KT2, cells, samples, dim=0) * _expand_axis(
            x_weight_KT2, cells, samples, dim=1
        )
        num_taps = (2 * samples) ** 2
        index = index.reshape(-1, num_taps)
        weight = weight.reshape(-1, num_taps).to(table.rows_RC.dtype) / samples**2
    pooled = F.embedding_bag(index, table.rows_RC, mode="sum", per_sample_weights=weight)
    return pooled.view(len(boxes_K4), cells, cells, pooled.shape[1]).permute(0, 3, 1, 2)


def _taps(start_K: Tensor, end_K: Tensor, size_K: Tensor, cells: int, samples: int) -> tuple[Tensor, Tensor]:
    """Indices and weights of the two map cells around every sampling point of one axis; [K, T, 2] each."""
    cell_K1 = ((end_K - start_K).clamp(min=1.0) / cells)[:, None]
    step_T = torch.arange(cells * samples, device=start_K.device)
    point_KT = start_K[:, None] + (step_T // samples) * cell_K1
    point_KT = point_KT + (step_T % samples + 0.5) * cell_K1 / samples
    size_K1 = size_K[:, None]
    # Points up to one cell outside the map read its border; points beyond that count as zero.
    is_inside_KT = (point_KT >= -1.0) & (point_KT <= size_K1)
    point_KT = point_KT.clamp(min=0.0)
    low_KT = point_KT.long().minimum(size_K1 - 1)
    high_KT = (low_KT + 1).minimum(size_K1 - 1)
    # At the last cell both taps are that cell, so the weights need no correction.
    high_weight_KT = (point_KT - low_KT).clamp(max=1.0)
    weight_KT2 = torch.stack((1.0 - high_weight_KT, high_weight_KT), dim=2) * is_inside_KT[:, :, None]
    return torch.stack((low_KT, high_KT), dim=2), weight_KT2


def _expand_axis(x_KT2: Tensor, cells: int, samples: int, *, dim: int) -> Tensor:
    """[K, T, 2] -> [K, P, 1, 2S, 1] for the vertical axis (dim 0), [K, 1, P, 1, 2S] for the horizontal one."""
    x_KPS = x_KT2.reshape(len(x_KT2), cells, 2 * samples)
    return x_KPS[:, :, None, :, None] if dim == 0 else x_KPS[:, None, :, None, :]
