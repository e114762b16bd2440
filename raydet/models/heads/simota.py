"""SimOTA: which cells of a pyramid are trained to find which object, for all images of a batch at once.

YOLOX: Exceeding YOLO Series in 2021, arXiv 2107.08430, in the later form of its authors' code: candidates are the cells
around the centre of an object, whether or not they are inside its box.

An object takes the k candidates of the lowest cost, where k is the sum of its ten largest overlaps with the candidates'
boxes, at least 1. A cell that several objects take goes to the one that it costs least.

Differences to the published code, with the same assignments: there is no loop over images and no host sync, and costs
are computed at the candidates only. An object has at most nine of them on a level, so their number is bounded by that
of the objects, however many cells there are.

Legend: B images, G ground truths (padded), A cells (of all levels), K candidates (padded), C classes, L levels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RADIUS_CELLS = 1.5
"""Candidates are nearer than this to an object's centre, in both directions."""
CELLS_PER_SIDE = 3
"""Most cells of a row that are."""
OVERLAP_WEIGHT = 3.0
OTHERS_CANDIDATE = 1e6
"""Cost of a cell that is not the object's own candidate, but another's."""
MOST_CELLS = 10
"""Of an object."""


class Cells(NamedTuple):
    """The cells of a pyramid, level after level, row by row."""

    column_A: Tensor
    row_A: Tensor
    stride_A: Tensor
    """Pixels per cell."""


class Assignment(NamedTuple):
    """For every image candidates in ascending order, and what those that are positive are trained to find."""

    cell_BK: Tensor
    """Index of a cell; those that are not positive may repeat another."""
    is_positive_BK: Tensor
    truth_BK: Tensor
    """Index of a ground truth."""
    iou_BK: Tensor
    """Overlap of the predicted box with that ground truth."""


def cells_of(sizes_hw: list[tuple[int, int]], strides: list[int], device: torch.device) -> Cells:
    """The cells of maps of some sizes, float32."""
    parts = []
    for (height, width), stride in zip(sizes_hw, strides, strict=True):
        row_A = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
        column_A = torch.arange(width, device=device, dtype=torch.float32).repeat(height)
        parts.append((column_A, row_A, torch.full_like(row_A, stride)))
    return Cells(*(torch.cat(part) for part in zip(*parts, strict=True)))


def candidates(
    centre_BG2: Tensor, is_real_BG: Tensor, sizes_hw: list[tuple[int, int]], strides: list[int]
) -> tuple[Tensor, Tensor]:
    """Cells near the centre of some object, each once.

    Returns:
        Indices [B, K] in ascending order, and whether each is one; those that are none come with any index.
    """
    device = centre_BG2.device
    near = torch.arange(CELLS_PER_SIDE, device=device)
    indices, first = [], 0
    for (height, width), stride in zip(sizes_hw, strides, strict=True):
        # Cell i has its centre at i + 1/2; the first one within the radius.
        start_BG2 = (centre_BG2 / stride - 0.5 - RADIUS_CELLS).floor().long() + 1
        column_BGn, row_BGn = (start_BG2[..., axis, None] + near for axis in (0, 1))
        x_BGn, y_BGn = (
            (cell_BGn + 0.5) * stride - centre_BG2[..., axis, None]
            for axis, cell_BGn in enumerate((column_BGn, row_BGn))
        )
        reach = RADIUS_CELLS * stride
        column_is_in = (x_BGn.abs() < reach) & (column_BGn >= 0) & (column_BGn < width)
        row_is_in = (y_BGn.abs() < reach) & (row_BGn >= 0) & (row_BGn < height)
        is_in_BGnn = row_is_in[..., :, None] & column_is_in[..., None, :] & is_real_BG[..., None, None]
        index_BGnn = first + row_BGn[..., :, None] * width + column_BGn[..., None, :]
        indices.append(torch.where(is_in_BGnn, index_BGnn, -1).flatten(1))
        first += height * width
    index_BK = torch.cat(indices, dim=1).sort(dim=1).values
    is_repeated_BK = torch.zeros_like(index_BK, dtype=torch.bool)
    is_repeated_BK[:, 1:] = index_BK[:, 1:] == index_BK[:, :-1]
    return index_BK.clamp(min=0), (index_BK >= 0) & ~is_repeated_BK


@torch.no_grad()
def assign_simota(
    cell_BK: Tensor,
    is_candidate_BK: Tensor,
    *,
    cells: Cells,
    boxes_BK4: Tensor,
    class_logits_BKC: Tensor,
    objectness_BK: Tensor,
    truth_BG4: Tensor,
    labels_BG: Tensor,
    is_real_BG: Tensor,
) -> Assignment:
    """Share out the candidates among the objects.

    Args:
        cell_BK, is_candidate_BK: as `candidates` returns them.
        boxes_BK4: predicted there, as centre, width and height, as are logits of classes and of objectness.
        truth_BG4: boxes as centre, width and height.
        labels_BG: 0..C-1; of padding anything in this range.
    """
    is_pair_BGK = is_real_BG[..., None] & is_candidate_BK[:, None]
    iou_BGK = overlaps(truth_BG4[:, :, None], boxes_BK4[:, None]).masked_fill(~is_pair_BGK, 0.0)
    cost_BGK = _class_costs(class_logits_BKC, objectness_BK, labels_BG)
    cost_BGK = cost_BGK - OVERLAP_WEIGHT * (iou_BGK + 1e-8).log()
    reach_BK = RADIUS_CELLS * cells.stride_A[cell_BK]
    is_own_BGK = torch.ones_like(is_pair_BGK)
    for axis, index_A in enumerate((cells.column_A, cells.row_A)):
        centre_BK = (index_A[cell_BK] + 0.5) * cells.stride_A[cell_BK]
        is_own_BGK &= (centre_BK[:, None] - truth_BG4[:, :, None, axis]).abs() < reach_BK[:, None]
    cost_BGK = (cost_BGK + OTHERS_CANDIDATE * ~is_own_BGK).masked_fill(~is_pair_BGK, torch.inf)
    most = min(MOST_CELLS, cell_BK.shape[1])
    num_BG = iou_BGK.topk(most, dim=2).values.sum(dim=2).int().clamp(min=1)
    cheapest = cost_BGK.topk(most, dim=2, largest=False)
    is_taken_BGn = torch.arange(most, device=num_BG.device) < num_BG[..., None]
    is_taken_BGK = torch.zeros_like(is_pair_BGK).scatter_(
        2, cheapest.indices, is_taken_BGn & cheapest.values.isfinite()
    )
    takers_BK = is_taken_BGK.sum(dim=1)
    truth_BK = torch.where(takers_BK > 1, cost_BGK.argmin(dim=1), is_taken_BGK.int().argmax(dim=1))
    return Assignment(cell_BK, takers_BK > 0, truth_BK, iou_BGK.gather(1, truth_BK[:, None])[:, 0])


def overlaps(first_4: Tensor, second_4: Tensor) -> Tensor:
    """Intersection over union of boxes given as centre, width and height; 0 where both are empty."""
    low_2, high_2 = (
        bound(first_4[..., :2] + side * first_4[..., 2:], second_4[..., :2] + side * second_4[..., 2:])
        for bound, side in ((torch.maximum, -0.5), (torch.minimum, 0.5))
    )
    # Not `prod`, whose gradient is slow.
    width, height = (high_2 - low_2).clamp(min=0).unbind(dim=-1)
    shared = width * height
    union = first_4[..., 2] * first_4[..., 3] + second_4[..., 2] * second_4[..., 3] - shared
    return shared / (union + 1e-16)


def _class_costs(class_logits_BKC: Tensor, objectness_BK: Tensor, labels_BG: Tensor) -> Tensor:
    """[B, G, K]: cross entropy of sqrt(class x objectness), summed over the classes."""
    score_BKC = (class_logits_BKC.sigmoid() * objectness_BK[..., None].sigmoid()).sqrt()
    # The bounds are those of F.binary_cross_entropy.
    if_class_BKC, if_not_BKC = (-x.log().clamp(min=-100) for x in (score_BKC, 1 - score_BKC))
    swap_BCK = (if_class_BKC - if_not_BKC).transpose(1, 2)
    index_BGK = labels_BG[..., None].expand(-1, -1, swap_BCK.shape[2])
    return if_not_BKC.sum(dim=2)[:, None] + swap_BCK.gather(1, index_BGK)
