"""Matching of boxes to ground truths and sampling of boxes, for a whole batch at once.

Faster R-CNN, arXiv 1506.01497. Rules, ties and random draws are those of torchvision's `Matcher` and
`BalancedPositiveNegativeSampler`, without a loop over images, a matrix larger than `MAX_PAIRS`, or more than a few host
syncs.

Legend: B batch, G ground truths (padded), A boxes (anchors or proposals, padded), S sampled boxes of all images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_PAIRS = 2**22
"""Most overlaps computed at a time: 16 MiB in fp32, and about six times that in intermediate results."""

BACKGROUND = -1
IGNORED = -2


def match(
    truth_BG4: Tensor,
    is_truth_BG: Tensor,
    boxes_BA4: Tensor,
    *,
    high: float,
    low: float,
    keep_best: bool,
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """The ground truth with the largest overlap for every box.

    Args:
        is_truth_BG: False for padding.
        boxes_BA4: B may be 1 for the same boxes in every image.
        high: smallest intersection over union of a match.
        low: intersection over union below which a box is background; boxes between the two are ignored.
        keep_best: also match the boxes with the largest overlap of each ground truth, however small it is.

    Returns:
        int64 [B, A]: index of the ground truth, or BACKGROUND, or IGNORED.
    """
    shape = (len(is_truth_BG), boxes_BA4.shape[1])
    best_BA = truth_BG4.new_full(shape, -1.0)
    index_BA = torch.zeros(shape, dtype=torch.int64, device=truth_BG4.device)
    is_best_BA = torch.zeros(shape, dtype=torch.bool, device=truth_BG4.device)
    step = max(1, max_pairs // max(1, shape[0] * shape[1]))
    for first in range(0, is_truth_BG.shape[1], step):
        chunk = slice(first, first + step)
        is_truth_Bg1 = is_truth_BG[:, chunk, None]
        iou_BgA = overlaps(truth_BG4[:, chunk], boxes_BA4).masked_fill_(~is_truth_Bg1, -1.0)
        if keep_best:
            most_Bg1 = iou_BgA.amax(dim=2, keepdim=True)
            is_best_BA |= ((iou_BgA == most_Bg1) & is_truth_Bg1).any(dim=1)
        found_BA, where_BA = iou_BgA.max(dim=1)
        is_better_BA = found_BA > best_BA  # on a tie the smaller index wins
        index_BA = torch.where(is_better_BA, where_BA + first, index_BA)
        best_BA = torch.maximum(best_BA, found_BA)
    is_matched_BA = (best_BA >= high) | is_best_BA
    return torch.where(is_matched_BA, index_BA, torch.where(best_BA < low, BACKGROUND, IGNORED))


def overlaps(a_BG4: Tensor, b_BA4: Tensor) -> Tensor:
    """Intersection over union of all pairs [B, G, A]; 0 / 0 where both boxes are empty.

    >>> overlaps(torch.tensor([[[0.0, 0, 2, 2]]]), torch.tensor([[[0.0, 0, 2, 1], [2, 2, 3, 3]]]))
    tensor([[[0.5000, 0.0000]]])
    """
    ax1, ay1, ax2, ay2 = a_BG4[:, :, None].unbind(3)
    bx1, by1, bx2, by2 = b_BA4[:, None].unbind(3)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    shared = width.mul_(height)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    return shared.div_(union)


class Sample(NamedTuple):
    """Sampled boxes of all images: first all positive ones, then all negative ones."""

    image_S: Tensor
    box_S: Tensor
    num_positive: int


def sample_balanced(labels_BA: Tensor, *, size: int, positive_fraction: float) -> Sample:
    """Draw up to `size` boxes per image without replacement, at most `positive_fraction` of `size` positive.

    Negative boxes fill the rest. `labels_BA` is 1 or more for positive, 0 for negative, less for ignored boxes.
    """
    positive, negative = (labels_BA >= 1).nonzero(), (labels_BA == 0).nonzero()
    counts = torch.stack(((labels_BA >= 1).sum(dim=1), (labels_BA == 0).sum(dim=1)), dim=1).tolist()
    chosen_positive, chosen_negative = [], []
    first_positive = first_negative = 0
    for num_positive, num_negative in counts:
        taken = min(num_positive, int(size * positive_fraction))
        # Two permutations per image, in this order, as in torchvision's sampler.
        order = torch.randperm(num_positive, device=labels_BA.device)[:taken]
        chosen_positive.append(positive[first_positive + order])
        order = torch.randperm(num_negative, device=labels_BA.device)[: size - taken]
        chosen_negative.append(negative[first_negative + order])
        first_positive, first_negative = first_positive + num_positive, first_negative + num_negative
    chosen = torch.cat(chosen_positive + chosen_negative)
    return Sample(chosen[:, 0], chosen[:, 1], sum(map(len, chosen_positive)))
