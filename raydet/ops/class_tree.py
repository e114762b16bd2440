"""A class tree over the channels of a model's logits, and how logits become classes and groups.

Level 0 are the classes, level l the groups of `task.levels[l - 1]`; every class has one ancestor on each level. A model
has one output per class, or (hierarchical) one per class and then one per group, level after level, up to some level.

Legend: B batch, N outputs, K classes, G groups of a level, L + 1 levels with that of the classes, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from raydet.config import Level
from raydet.errors import ConfigError

UNDECIDED = 255
"""Id on the levels below the one to which a pixel was backed off; the same number as `structures.IGNORE`."""

Decoding = Literal["consistent", "independent"]


class ClassTree:
    """Where each class belongs on each level, and where its outputs are.

    Args:
        levels: from the level above the classes to the roots; none: the classes alone.

    Raises:
        ConfigError: there are more classes than a mask can tell from its ignored pixels.

    >>> tree = ClassTree(3, [Level(name="kind", groups=("animal", "plant"), parents=(0, 0, 1))])
    >>> tree.num_outputs, tree.slices, tree.ancestors.tolist()
    (5, (slice(0, 3, None), slice(3, 5, None)), [[0, 1, 2], [0, 0, 1]])
    """

    def __init__(self, num_classes: int, levels: Sequence[Level] = ()) -> None:
        if num_classes > UNDECIDED:
            raise ConfigError(
                f"data.classes: expected at most {UNDECIDED} classes for masks, got {num_classes}"
            )
        self.num_classes = num_classes
        self.sizes = (num_classes, *(len(level.groups) for level in levels))
        """Number of outputs of each level."""
        self.num_outputs = sum(self.sizes)
        """Of a hierarchical model."""
        self.slices = tuple(slice(*ends) for ends in pairwise(accumulate(self.sizes, initial=0)))
        """The outputs of each level."""
        self.parents = tuple(level.parents for level in levels)
        """Of each class or group of a level, its group on the level above."""
        self.ancestors = self.ancestors_of(0)
        """int64 [L + 1, K]: row l is the group of each class on level l; row 0 the classes themselves."""

    def ancestors_of(self, level: int) -> Tensor:
        """int64 [L + 1 - level, G]: the ancestors of each class or group of a level, from itself to its root."""
        rows = [list(range(self.sizes[level]))]
        for parents in self.parents[level:]:
            rows.append([parents[below] for below in rows[-1]])
        return torch.tensor(rows, device="cpu")

    def num_levels(self, num_outputs: int) -> int:
        """How many levels, that of the classes included, have outputs of their own.

        Raises:
            ValueError: no number of levels has so many outputs.
        """
        totals = list(accumulate(self.sizes))
        if num_outputs not in totals:
            raise ValueError(f"expected {' or '.join(map(str, totals))} outputs, got {num_outputs}")
        return totals.index(num_outputs) + 1


def decode(
    logits_BNHW: Tensor, tree: ClassTree, *, decoding: Decoding = "consistent", back_off: float | None = None
) -> Tensor:
    """The class and the group on every level of each pixel: int16 [B, L + 1, H, W].

    A model with one output per class is sure of its groups through its classes: it has the best class, that class's
    ancestors, and as a group's probability the sum of its classes' (softmax), whatever `decoding` says.

    A hierarchical model's probabilities are those of its outputs by themselves (sigmoid). `consistent` takes the path
    from a root to a class whose sum of probabilities is the largest (Deep Hierarchical Semantic Segmentation, CVPR
    2022), the first of equal ones; `independent` takes the largest output of each level for itself, which
    may contradict the tree. Levels without outputs follow from the highest one that has them: their groups are the
    ancestors of its group, and as probable as the surest of their members there.

    Args:
        logits_BNHW: N is the number of classes, or that of the outputs of the classes and some levels above them.
        back_off: a probability. What was decided stands from the lowest level on that has this probability; below it,
            and everywhere if no level has it, ids are UNDECIDED.

    Raises:
        ValueError: there are other numbers of outputs.
    """
    num_levels = tree.num_levels(logits_BNHW.shape[1])
    logits_BNHW = logits_BNHW.float()
    if num_levels > 1 and decoding == "independent":
        own = [_best(logits_BNHW[:, outputs]) for outputs in tree.slices[:num_levels]]
        above_LG = tree.ancestors_of(num_levels - 1)[1:].to(logits_BNHW.device, non_blocking=True)
        ids_BLHW = torch.cat([torch.stack(own, dim=1), above_LG[:, own[-1]].movedim(0, 1)], dim=1)
    else:
        best_BHW = _best(logits_BNHW) if num_levels == 1 else _best_path(logits_BNHW, tree, num_levels)
        ancestors_LK = tree.ancestors.to(logits_BNHW.device, non_blocking=True)
        ids_BLHW = ancestors_LK[:, best_BHW].movedim(0, 1)
    if back_off is not None:
        probabilities_BLHW = _probabilities(logits_BNHW, ids_BLHW, tree, num_levels)
        is_sure_BLHW = (probabilities_BLHW >= back_off).int().cummax(dim=1).values.bool()
        ids_BLHW = ids_BLHW.where(is_sure_BLHW, UNDECIDED)
    return ids_BLHW.to(torch.int16)


def contradictions(ids_BLHW: Tensor, tree: ClassTree) -> Tensor:
    """Whether the groups of a pixel are other ones than those of its class: bool [B, H, W].

    Args:
        ids_BLHW: what `decode` gives without `back_off`.
    """
    ancestors_LK = tree.ancestors.to(ids_BLHW.device, non_blocking=True)
    return (ancestors_LK[:, ids_BLHW[:, 0].long()].movedim(0, 1) != ids_BLHW).any(dim=1)


def _best_path(logits_BNHW: Tensor, tree: ClassTree, num_levels: int) -> Tensor:
    """The class at the end of the best path: [B, H, W]."""
    # The largest sum of p - 1 = -sigmoid(-x): p itself is rounded to 1 from x = 17 on.
    scores_BNHW = logits_BNHW.neg().sigmoid_().neg_()
    sums_BKHW = scores_BNHW[:, tree.slices[0]]
    for outputs, ancestors_K in zip(tree.slices[1:num_levels], tree.ancestors[1:num_levels], strict=True):
        ancestors_K = ancestors_K.to(logits_BNHW.device, non_blocking=True)
        sums_BKHW = sums_BKHW + scores_BNHW[:, outputs].index_select(1, ancestors_K)
    return _best(sums_BKHW)


def _best(scores_BNHW: Tensor) -> Tensor:
    """The first of the largest: [B, H, W]."""
    return scores_BNHW.max(dim=1).indices  # argmax took three times as long on a CPU


def _probabilities(logits_BNHW: Tensor, ids_BLHW: Tensor, tree: ClassTree, num_levels: int) -> Tensor:
    """The probability of each pixel's id on every level: [B, L + 1, H, W]."""
    above_LG = tree.ancestors_of(num_levels - 1)[1:]
    if num_levels == 1:
        levels = [logits_BNHW.softmax(dim=1)]
        for groups_K, size in zip(above_LG, tree.sizes[1:], strict=True):
            members_KG = one_hot(groups_K, size).to(levels[0])
            levels.append(torch.einsum("kg,bkhw->bghw", members_KG, levels[0]))
    else:
        levels = [logits_BNHW[:, outputs].sigmoid() for outputs in tree.slices[:num_levels]]
        highest_BGHW = levels[-1]
        for groups_G, size in zip(above_LG, tree.sizes[num_levels:], strict=True):
            members = [
                [g for g, group in enumerate(groups_G.tolist()) if group == found] for found in range(size)
            ]
            levels.append(torch.stack([highest_BGHW[:, mine].amax(dim=1) for mine in members], dim=1))
    chosen = [p_BGHW.gather(1, ids_BLHW[:, i : i + 1]) for i, p_BGHW in enumerate(levels)]
    return torch.cat(chosen, dim=1)
