"""SegHiero's losses of masks, written down plainly from their formulas: the reference for the numbers, the baseline for
the speed.

Logits are upsampled to the labels' size at once, labels become one-hot maps, triplets come from loops over the classes,
and region mutual information takes nine-fold copies in fp64. Three habits of the published code that `raydet` does not
share can be had: the cross-entropy divides by all pixels, ignored pixels are negatives of triplets, and they count in
region mutual information.

Legend: B batch, V outputs (classes and groups), K classes, E embedding, h w map, H W canvas, D = 9 neighbours,
P positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from raydet.config.task import Level
from raydet.structures import IGNORE

Form = Literal["seghiero", "hieraseg"]


def upsampled(logits_BVhw: Tensor, ids_BHW: Tensor) -> Tensor:
    """The logits at the labels' size, in fp32 at least."""
    wide = logits_BVhw if logits_BVhw.dtype == torch.float64 else logits_BVhw.float()
    return F.interpolate(wide, size=ids_BHW.shape[1:], mode="bilinear", align_corners=False)


def labels_by_level(ids_BHW: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """int64 [B, H, W] per level, the classes first; IGNORE stays."""
    labels = [ids_BHW.long()]
    for level in levels:
        below = labels[-1]
        table = torch.full((IGNORE + 1,), IGNORE, device=below.device)
        table[: len(level.parents)] = torch.tensor(level.parents, device=below.device)
        labels.append(table[below])
    return labels


def split_levels(outputs_BVHW: Tensor, levels: Sequence[Level]) -> tuple[Tensor, ...]:
    """The outputs of every level, the classes first."""
    groups = [len(level.groups) for level in levels]
    return outputs_BVHW.split([outputs_BVHW.shape[1] - sum(groups), *groups], dim=1)


def cross_entropies(
    logits_BVHW: Tensor,
    ids_BHW: Tensor,
    levels: Sequence[Level],
    *,
    over_all: bool = True,
    focal_gamma: float = 0.0,
) -> list[Tensor]:
    """Of every level.

    Args:
        over_all: divide by all pixels, as published, not by the labelled ones.
        focal_gamma: of the focal form; 0 is the cross-entropy.
    """
    is_valid_BHW = ids_BHW != IGNORE
    count = ids_BHW.numel() if over_all else is_valid_BHW.sum()
    pairs = zip(split_levels(logits_BVHW, levels), labels_by_level(ids_BHW, levels), strict=True)
    if not focal_gamma:
        return [F.cross_entropy(x, y, ignore_index=IGNORE, reduction="sum") / count for x, y in pairs]
    losses = []
    for x, y in pairs:
        costs_BHW = F.cross_entropy(x, y, ignore_index=IGNORE, reduction="none")
        # At 0 the slope of the power is infinite if gamma is less than 1.
        costs_BHW = costs_BHW.where(is_valid_BHW, 1.0)
        losses.append(((1 - (-costs_BHW).exp()) ** focal_gamma * costs_BHW * is_valid_BHW).sum() / count)
    return losses


def one_hot(labels_BHW: Tensor, size: int) -> Tensor:
    """float32 [B, size, H, W]; ignored pixels get class 0, as published: what uses it multiplies by validity."""
    return F.one_hot(labels_BHW.where(labels_BHW != IGNORE, 0), size).movedim(-1, 1).float()


def binary_losses(
    logits_BVHW: Tensor,
    ids_BHW: Tensor,
    levels: Sequence[Level],
    *,
    form: Form = "seghiero",
    focal_gamma: float = 0.0,
) -> Tensor:
    """The sum over the levels of the binary losses on the tree, without a weight.

    Args:
        form: how far up the tree a minimum looks, one level or all the way (`hieraseg`).
        focal_gamma: of the focal form.
    """
    epsilon = 1e-8 if len(levels) == 1 else 1e-6
    scores = split_levels(logits_BVHW.sigmoid(), levels)
    highest = [scores[0]]
    lowest = [scores[-1]]
    for level, own in zip(levels, scores[1:], strict=True):
        groups = [
            [i for i, parent in enumerate(level.parents) if parent == group]
            for group in range(len(level.groups))
        ]
        best = torch.stack([highest[-1][:, members].amax(dim=1) for members in groups], dim=1)
        highest.append(torch.maximum(own, best))
    for level, own, above in zip(reversed(levels), scores[-2::-1], scores[:0:-1], strict=True):
        above = above if form == "seghiero" else lowest[0]
        lowest.insert(0, torch.minimum(own, above[:, list(level.parents)]))
    is_valid_B1HW = (ids_BHW != IGNORE)[:, None]
    total = logits_BVHW.new_zeros(())
    for low, high, labels in zip(highest, lowest, labels_by_level(ids_BHW, levels), strict=True):
        truth = one_hot(labels, low.shape[1])
        costs = -truth * (high + epsilon).log() - (1 - truth) * (1 - low + epsilon).log()
        if focal_gamma:
            costs = costs * (truth * (1 - high) + (1 - truth) * low) ** focal_gamma
        total = total + (costs * is_valid_B1HW).sum() / is_valid_B1HW.sum() / low.shape[1]
    return total


def rmi(
    logits_BVHW: Tensor,
    ids_BHW: Tensor,
    levels: Sequence[Level],
    *,
    pool: bool = False,
    center: bool = False,
    ignored_count: bool = True,
) -> Tensor:
    """Region mutual information; HieraSeg's form pools and centres.

    The published formula cancels digits where neighbours are much alike: without pooling and centring its gradient has
    about half of them left.

    Args:
        ignored_count: positions with ignored pixels count, which are of class 0 there, and the logarithm has its 1e-8,
            as published.
    """
    is_valid_B1HW = (ids_BHW != IGNORE)[:, None]
    scores = logits_BVHW.sigmoid() * is_valid_B1HW + 1e-6
    sizes = [x.shape[1] for x in split_levels(logits_BVHW, levels)]
    labels_by = zip(labels_by_level(ids_BHW, levels), sizes, strict=True)
    truth = torch.cat([one_hot(labels, size) for labels, size in labels_by], dim=1).to(scores.dtype)
    valid = is_valid_B1HW.to(scores.dtype)
    if ignored_count:
        valid = torch.ones_like(valid)
    else:
        truth = truth * valid
    if pool:
        scores, truth, valid = (F.max_pool2d(x, 3, 3, padding=1) for x in (scores, truth, valid))
    p_BVDP, y_BVDP = (F.unfold(x, 3).unflatten(1, (x.shape[1], 9)).double() for x in (scores, truth))
    counts_B1P1 = F.unfold(valid, 3).amin(dim=1)[:, None, :, None].double()  # 1 where all nine count
    num_B = counts_B1P1.sum(dim=(1, 2, 3))
    if center:
        weights_B1P1 = counts_B1P1 / num_B.clamp(min=1)[:, None, None, None]
        p_BVDP, y_BVDP = (x - x @ weights_B1P1 for x in (p_BVDP, y_BVDP))
    if not ignored_count:
        p_BVDP, y_BVDP = (x * counts_B1P1.mT for x in (p_BVDP, y_BVDP))
    ridge = 1e-3 * torch.eye(9, dtype=torch.float64, device=logits_BVHW.device)
    mixed = y_BVDP @ p_BVDP.mT
    inverse = torch.linalg.inv(p_BVDP @ p_BVDP.mT + ridge)
    rest = y_BVDP @ y_BVDP.mT - mixed @ inverse @ mixed.mT
    diagonal = torch.linalg.cholesky(rest + ridge).diagonal(dim1=-2, dim2=-1)
    values_BV = (diagonal + (1e-8 if ignored_count else 0.0)).log().sum(dim=-1) / 9
    has_B = num_B > 0
    return (values_BV.sum(dim=1) * has_B).sum() / has_B.sum().clamp(min=1)


def triplet(
    embedding_BEhw: Tensor,
    ids_BHW: Tensor,
    groups: Sequence[int],
    *,
    ignored_are_negatives: bool = True,
    most: int = 200,
    margin: float = 0.6,
) -> Tensor:
    """Tree triplets of embeddings of length 1; 0 if there are none."""
    ids = F.interpolate(ids_BHW[:, None].float(), size=embedding_BEhw.shape[2:], mode="nearest").long()
    ids_P = ids.flatten()
    embedding_PE = embedding_BEhw.movedim(1, -1).flatten(0, 2)
    losses = []
    for own in ids_P.unique().tolist():
        if own == IGNORE:
            continue
        group = torch.tensor([k for k, other in enumerate(groups) if other == groups[own]], device=ids.device)
        in_group_P = torch.isin(ids_P, group)
        anchors = embedding_PE[ids_P == own]
        positives = embedding_PE[in_group_P & (ids_P != own)]
        negatives = embedding_PE[~in_group_P & (ignored_are_negatives | (ids_P != IGNORE))]
        count = min(len(anchors), len(positives), len(negatives), most)
        if count:
            near = 1 - (anchors[:count] * positives[:count]).sum(dim=1)
            far = 1 - (anchors[:count] * negatives[:count]).sum(dim=1)
            losses.append((near - far + margin).relu().mean())
    return torch.stack(losses).mean() if losses else embedding_BEhw.new_zeros(())


def triplet_weight(step: int, *, steps: int = 80000) -> float:
    """The weight's schedule."""
    return 0.25 * (1 + math.cos((step - steps) / steps * math.pi)) if step < steps else 0.5
