"""Losses on every level of a class tree that respect the tree.

Deep Hierarchical Semantic Segmentation, arXiv 2203.14335 (CVPR 2022), and SegHiero's variants of it. No code is taken
from either: HieraSeg has no licence.

Of a pixel's sigmoid scores s, one per class and per group, the binary losses on the tree take
    U(v) = max of s over v and all that is below it, to be low where v is not on the pixel's path to the root,
    D(v) = min of s over v and what is above it, to be high where v is on the path,
    loss = sum over the levels of the mean over the level's members v of -log(D(v) + e) or -log(1 - U(v) + e).
For two levels this is SegHiero's and HieraSeg's loss. For three levels and more SegHiero's D looks up one level only
(`form="seghiero"`), HieraSeg's all the way (`form="hieraseg"`).

Departures from the published codes:
1. Any depth, and groups of any classes, not only of neighbouring ids.
2. Ignored pixels count nowhere; SegHiero's cross-entropy divides by their number, too.
3. Maxima and minima are taken of logits, which do not saturate, and 1 - U is the sigmoid of -logit, which keeps its
   digits.

Legend: B batch, N images of a chunk, V outputs (classes and groups), K classes, L levels, E embedding, h w map of the
logits, H W canvas, R rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raydet.config.task import Level
from raydet.models.losses.base import PixelLoss
from raydet.models.losses.cross_entropy import CrossEntropyTerm
from raydet.models.losses.pixelwise import PixelTerm, pixel_means
from raydet.models.losses.rmi import RMI
from raydet.models.losses.tree import TreeChannels, tree_channels
from raydet.models.losses.triplet import TreeTriplet

Form = Literal["seghiero", "hieraseg"]


@dataclass(frozen=True)
class TreeTerm:
    """The binary losses on the tree; see the module and `PixelTerm`."""

    tree: TreeChannels
    form: Form
    focal_gamma: float

    @property
    def channels(self) -> slice:
        """All."""
        return slice(0, self.tree.num_channels)

    @property
    def epsilon(self) -> float:
        """Of the logarithms; SegHiero's two constants."""
        return 1e-8 if len(self.tree.levels) <= 2 else 1e-6

    def __call__(
        self, logits_NVRW: Tensor, labels_NLRW: Tensor, is_valid_N1RW: Tensor, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        on_path_NLRW = logits_NVRW.gather(1, labels_NLRW)
        lowest_NLRW = self._lowest(on_path_NLRW)
        lacks_NVRW = self._lacks(logits_NVRW)
        # What has to be low costs f(-U), what has to be high f(D).
        log_NVRW, slope_NVRW = self._binary(lacks_NVRW, with_gradient)
        log_NLRW, slope_NLRW = self._binary(lowest_NLRW, with_gradient)
        log_NVRW.scatter_(1, labels_NLRW, log_NLRW)
        means_N1RW = sum(log_NVRW[:, own].mean(dim=1, keepdim=True) for own in self.tree.levels)
        value = -(means_N1RW * is_valid_N1RW).sum(dim=-1).sum()
        if slope_NVRW is None or slope_NLRW is None:
            return value, None

        slope_NVRW.scatter_(1, labels_NLRW, 0.0)
        for i, own in enumerate(self.tree.levels):
            share_N1RW = is_valid_N1RW / (own.stop - own.start)
            slope_NVRW[:, own].mul_(share_N1RW)
            slope_NLRW[:, i, None].mul_(-share_N1RW)
        self._hand_down(slope_NVRW, logits_NVRW, lacks_NVRW)
        self._hand_up(slope_NLRW, on_path_NLRW, lowest_NLRW)
        # Nothing has been handed down to members of the path: what is above them is on the path, too.
        return value, slope_NVRW.scatter_(1, labels_NLRW, slope_NLRW)

    def _binary(self, logits: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """-f(x) = (1 - p)^gamma log(p + e), p = sigmoid(x), and the slope of -f."""
        p = logits.sigmoid()
        kept = p + self.epsilon
        log = kept.log()
        if not self.focal_gamma:
            return log, p.addcmul_(p, p, value=-1).div_(kept) if with_gradient else None
        focus = (1 - p) ** self.focal_gamma
        slope = (p * (1 - p) / kept - self.focal_gamma * p * log) * focus if with_gradient else None
        return log * focus, slope

    def _lacks(self, logits_NVRW: Tensor) -> Tensor:
        """Logits of 1 - U."""
        lacks_NVRW = -logits_NVRW
        for family in self.tree.families:
            own_NRW = lacks_NVRW[:, family.group]
            torch.minimum(own_NRW, lacks_NVRW[:, family.members].amin(dim=1), out=own_NRW)
        return lacks_NVRW

    def _hand_down(self, slope_NVRW: Tensor, logits_NVRW: Tensor, lacks_NVRW: Tensor) -> None:
        """Turn slopes with respect to U into slopes with respect to logits: each goes to where the maximum comes
        from, in equal parts if several members have it."""
        for family in reversed(self.tree.families):
            group = slice(family.group, family.group + 1)
            is_own_N1RW = logits_NVRW[:, group] == -lacks_NVRW[:, group]
            is_best = (lacks_NVRW[:, family.members] == lacks_NVRW[:, group]).to(slope_NVRW.dtype)
            down_N1RW = slope_NVRW[:, group].masked_fill(is_own_N1RW, 0)
            down_N1RW.div_(is_best.sum(dim=1, keepdim=True).clamp(min=1))
            slope_NVRW[:, group].mul_(is_own_N1RW)
            slope_NVRW[:, family.members].addcmul_(down_N1RW, is_best)

    def _lowest(self, on_path_NLRW: Tensor) -> Tensor:
        """Logits of D on the path."""
        lowest_NLRW = on_path_NLRW.clone()
        above_NLRW = on_path_NLRW if self.form == "seghiero" else lowest_NLRW
        for i in reversed(range(on_path_NLRW.shape[1] - 1)):
            lowest_NLRW[:, i] = torch.minimum(on_path_NLRW[:, i], above_NLRW[:, i + 1])
        return lowest_NLRW

    def _hand_up(self, slope_NLRW: Tensor, on_path_NLRW: Tensor, lowest_NLRW: Tensor) -> None:
        """Turn slopes with respect to D into slopes with respect to logits: each goes to where the minimum is."""
        steps = range(on_path_NLRW.shape[1] - 1)
        # With one step up, what a level hands up must not be handed further.
        for i in reversed(steps) if self.form == "seghiero" else steps:
            up_NRW = slope_NLRW[:, i].masked_fill(on_path_NLRW[:, i] == lowest_NLRW[:, i], 0)
            slope_NLRW[:, i] -= up_NRW
            slope_NLRW[:, i + 1] += up_NRW


class Hierarchical(PixelLoss):
    """Binary losses on the tree, cross-entropy of every level, and by choice region mutual information and triplets.

    Args:
        levels: from the level above the classes to the roots.
        weight: of the binary losses, beside the cross-entropy of each level, whose weight is 1; 0: without them.
        form, focal_gamma: of the binary losses, see the module.
    """

    path_LK: Tensor
    order_V: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        levels: Sequence[Level],
        weight: float = 5.0,
        form: Form = "hieraseg",
        focal_gamma: float = 0.0,
        rmi: RMI | None = None,
        triplet: TreeTriplet | None = None,
    ) -> None:
        super().__init__()
        self.tree = tree_channels(num_classes, levels)
        self.num_outputs = self.tree.num_channels
        self.weight = weight
        self.form: Form = form
        self.focal_gamma = focal_gamma
        self.rmi = rmi
        self.triplet = triplet
        # On the CPU even if the weights are built on the meta device: no other worker sends what is not in the state.
        self.register_buffer("path_LK", torch.tensor(self.tree.paths, device="cpu"), persistent=False)
        self.register_buffer("order_V", torch.tensor(self.tree.order, device="cpu"), persistent=False)
        self.pixel_names = (
            *(("loss_hierarchy",) if weight else ()),
            "loss_ce",
            *(f"loss_ce_{level.name}" for level in levels),
        )
        self.names = (
            *self.pixel_names,
            *(("loss_rmi",) if rmi is not None else ()),
            *(("loss_triplet",) if triplet is not None else ()),
        )

    def losses(
        self, logits_BVhw: Tensor, embedding_BEhw: Tensor | None, ids_BHW: Tensor
    ) -> dict[str, Tensor]:
        if not self.tree.is_in_order:
            logits_BVhw = logits_BVhw.index_select(1, self.order_V)
        terms: list[PixelTerm] = [CrossEntropyTerm(own, level) for level, own in enumerate(self.tree.levels)]
        if self.weight:
            terms.insert(0, TreeTerm(self.tree, self.form, self.focal_gamma))
        values = list(pixel_means(logits_BVhw, ids_BHW, terms, path_LC=self.path_LK))
        if self.weight:
            values[0] = self.weight * values[0]
        losses = dict(zip(self.pixel_names, values, strict=True))
        if self.rmi is not None:
            losses["loss_rmi"] = self.rmi(logits_BVhw, ids_BHW, self.path_LK)
        if self.triplet is not None:
            assert embedding_BEhw is not None, "a triplet loss needs an embedding"
            losses["loss_triplet"] = self.triplet(embedding_BEhw, ids_BHW)
        return losses

    def set_progress(self, fraction: float) -> None:
        """Set the weight of the triplets."""
        if self.triplet is not None:
            self.triplet.set_progress(fraction)
