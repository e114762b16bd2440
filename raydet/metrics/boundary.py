"""Boundaries between classes in masks, and which of their pixels two masks share.

Legend: H W image, K classes, E pixels on boundaries.
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
    edges_HW = [boundary_ids(ids_HW, ignore=ignore) for ids_HW in (truth_HW, predicted_HW)]
    counts = []
    for mine_HW, other_HW in (edges_HW, edges_HW[::-1]):
        labels_E, is_near_E = _pixels_near(mine_HW, other_HW, radius_px)
        for labels in (labels_E, labels_E[is_near_E]):
            counts.append(torch.bincount(labels, minlength=num_classes)[:num_classes])
    return BoundaryCounts(*counts)


def _pixels_near(mine_HW: Tensor, other_HW: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """The class of each of a mask's boundary pixels, and whether the other's boundary of that class is near: [E]."""
    y_E, x_E = (mine_HW != NONE).nonzero(as_tuple=True)  # few of all pixels
    labels_E = mine_HW[y_E, x_E]
    padded_HW = pad(other_HW, (radius, radius, radius, radius), value=NONE)
    width = padded_HW.shape[1]
    centre_E = (y_E + radius) * width + x_E + radius
    is_near_E = torch.zeros_like(labels_E, dtype=torch.bool)
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            if down**2 + right**2 <= radius**2:
                is_near_E |= padded_HW.take(centre_E + (down * width + right)) == labels_E
    return labels_E.long(), is_near_E
