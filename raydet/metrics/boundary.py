"""Boundaries between classes in masks, and which of their pixels two masks share.

Legend: H W image, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

NONE = -1
"""Id of the pixels that are not on a boundary."""


class BoundaryCounts(NamedTuple):
    """Pixels on boundaries, by class."""

    truth_K: Tensor
    """int64 [K]."""
    found_truth_K: Tensor
    """int64 [K]: those of the truth that a predicted boundary of the same class is near."""
    predicted_K: Tensor
    """int64 [K]."""
    right_predicted_K: Tensor
    """int64 [K]: predicted ones that a true boundary of the same class is near."""


def boundary_ids(ids_HW: Tensor, *, ignore: int) -> Tensor:
    """The class of each pixel that is on a boundary, NONE elsewhere: int16 [H, W].

    On a boundary is a pixel with a neighbour of another class to its left, right, above or below: a boundary is two
    pixels thick, one on each side, and each pixel belongs to its own class. The image's edge is no boundary, and where
    either pixel is ignored there is none.
    """
    ids_HW = ids_HW.to(torch.int16)
    is_labelled_HW = ids_HW != ignore
    result_HW = torch.full_like(ids_HW, NONE)
    for dim in (0, 1):
        length = ids_HW.shape[dim] - 1
        first, second = ids_HW.narrow(dim, 0, length), ids_HW.narrow(dim, 1, length)
        are_labelled = is_labelled_HW.narrow(dim, 0, length) & is_labelled_HW.narrow(dim, 1, length)
        is_edge = (first != second) & are_labelled
        for start, ids in ((0, first), (1, second)):
            part = result_HW.narrow(dim, start, length)
            part.copy_(ids.where(is_edge, part))
    return result_HW


def boundary_counts(
    truth_HW: Tensor, predicted_HW: Tensor, *, num_classes: int, ignore: int, radius_px: int
) -> BoundaryCounts:
    """How far the boundaries of two masks agree.

    Args:
        truth_HW: int [H, W], 0..K-1 or `ignore`.
        predicted_HW: int [H, W]; K or above (not `ignore`) for a pixel whose class was left open: its neighbours of a
            class are on a boundary. What the truth ignores is ignored here, too.
        radius_px: a boundary pixel is matched by one of the same class at most so far away (Euclidean).
    """
    truth_HW = truth_HW.to(torch.int16)
    predicted_HW = predicted_HW.to(torch.int16).where(truth_HW != ignore, ignore)
    edges = [boundary_ids(ids_HW, ignore=ignore) for ids_HW in (truth_HW, predicted_HW)]
    matched = [_is_near(mine, other, radius_px) for mine, other in (edges, edges[::-1])]

    def count(ids: Tensor) -> Tensor:
        return torch.bincount(ids[ids != NONE].long(), minlength=num_classes)[:num_classes]

    (truth_edges, predicted_edges), (is_found, is_right) = edges, matched
    return BoundaryCounts(
        count(truth_edges),
        count(truth_edges.where(is_found, NONE)),
        count(predicted_edges),
        count(predicted_edges.where(is_right, NONE)),
    )


def _is_near(mine_HW: Tensor, other_HW: Tensor, radius: int) -> Tensor:
    """Whether the other's boundary of the same class is near each boundary pixel: bool [H, W]."""
    height, width = mine_HW.shape
    padded = pad(other_HW, (radius, radius, radius, radius), value=NONE)
    is_near_HW = torch.zeros_like(mine_HW, dtype=torch.bool)
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            if down**2 + right**2 <= radius**2:
                top, left = radius + down, radius + right
                is_near_HW |= mine_HW == padded[top : top + height, left : left + width]
    return is_near_HW & (mine_HW != NONE)
