"""A class tree over the channels of a model's logits, and how logits become classes and groups.

Level 0 are the classes, level l the groups of `task.levels[l - 1]`; every class has one ancestor on each level. A model
has one output per class, or (hierarchical) one per class and then one per group, level after level.

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
        rows = [list(range(num_classes))]
        for level in levels:
            rows.append([level.parents[below] for below in rows[-1]])
        self.ancestors = torch.tensor(rows, device="cpu")
        """int64 [L + 1, K]: row l is the group of each class on level l; row 0 the classes themselves."""


def decode(
    logits_BNHW: Tensor, tree: ClassTree, *, decoding: Decoding = "consistent", back_off: float | None = None
) -> Tensor:
    """The class and the group on every level of each pixel: int16 [B, L + 1, H, W].

    A model with one output per class is sure of its groups through its classes: it has the best class, that class's
    ancestors, and as a group's probability the sum of its classes' (softmax), whatever `decoding` says.

    A hierarchical model's probabilities are those of its outputs by themselves (sigmoid). `consistent` takes the path
    from a root to a class whose sum of probabilities is the largest (Deep Hierarchical Semantic Segmentation, CVPR
    2022), the first of equal ones; `independent` takes the largest output of each level for itself, which
    may contradict the tree.

    Args:
        logits_BNHW: N is K or `tree.num_outputs`.
        back_off: a probability. What was decided stands from the lowest level on that has this probability; below it,
            and everywhere if no level has it, ids are UNDECIDED.

    Raises:
        ValueError: N is neither of the two.
    """
    num_outputs, num_classes = logits_BNHW.shape[1], tree.num_classes
    if num_outputs not in (num_classes, tree.num_outputs):
        raise ValueError(f"expected {num_classes} or {tree.num_outputs} outputs, got {num_outputs}")
    is_flat = num_outputs == num_classes
    logits_BNHW = logits_BNHW.float()
    if not is_flat and decoding == "independent":
        ids_BLHW = torch.stack([logits_BNHW[:, outputs].argmax(dim=1) for outputs in tree.slices], dim=1)
    else:
        best_BHW = logits_BNHW.argmax(dim=1) if is_flat else _best_path(logits_BNHW, tree)
        ancestors_LK = tree.ancestors.to(logits_BNHW.device, non_blocking=True)
        ids_BLHW = ancestors_LK[:, best_BHW].movedim(0, 1)
    if back_off is not None:
        probabilities_BLHW = _probabilities(logits_BNHW, ids_BLHW, tree)
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


def _best_path(logits_BNHW: Tensor, tree: ClassTree) -> Tensor:
    """The class at the end of the best path: [B, H, W]."""
    # The smallest sum of 1 - p = sigmoid(-x): p itself is rounded to 1 from x = 17 on.
    doubts_BNHW = (-logits_BNHW).sigmoid()
    sums_BKHW = doubts_BNHW[:, tree.slices[0]]
    for outputs, ancestors_K in zip(tree.slices[1:], tree.ancestors[1:], strict=True):
        ancestors_K = ancestors_K.to(logits_BNHW.device, non_blocking=True)
        sums_BKHW = sums_BKHW + doubts_BNHW[:, outputs].index_select(1, ancestors_K)
    return sums_BKHW.argmin(dim=1)


def _probabilities(logits_BNHW: Tensor, ids_BLHW: Tensor, tree: ClassTree) -> Tensor:
    """The probability of each pixel's id on every level: [B, L + 1, H, W]."""
    if logits_BNHW.shape[1] == tree.num_classes:
        classes_BKHW = logits_BNHW.softmax(dim=1)
        members = [one_hot(row, size) for row, size in zip(tree.ancestors[1:], tree.sizes[1:], strict=True)]
        levels = [classes_BKHW] + [
            torch.einsum("kg,bkhw->bghw", members_KG.to(classes_BKHW), classes_BKHW) for members_KG in members
        ]
    else:
        levels = [logits_BNHW[:, outputs].sigmoid() for outputs in tree.slices]
    chosen = [p_BGHW.gather(1, ids_BLHW[:, i : i + 1]) for i, p_BGHW in enumerate(levels)]
    return torch.cat(chosen, dim=1)
