"""Tree triplets: of the embeddings of three pixels, two of one group must be nearer than two of different groups.

From Deep Hierarchical Semantic Segmentation, arXiv 2203.14335, as SegHiero chooses the triplets: for every class, as
anchors the first of its pixels, as positives the first pixels of other classes of its group, as negatives the first
pixels of other groups, in the order of rows; the i-th anchor goes with the i-th positive and the i-th negative.

Departures from SegHiero:
1. Pixels without a label are never chosen; there they are negatives.
2. For any tree and any device, all classes at once, without a host sync.
3. The weight's schedule is in parts of the run, not in steps counted in epochs, so that it is reached.

Each pixel is the anchor of one triplet at most, so triplets are numbered by their anchors.

Legend: B batch, E embedding, h w map of the embedding, H W canvas, P = B h w pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.losses.pixelwise import wide_dtype
from raydet.structures import IGNORE


class TreeTriplet(nn.Module):
    """The mean over the classes that have triplets of the mean of max(0, d(anchor, positive) - d(anchor, negative) +
    margin), d = 1 - cosine; 0 if no class has any.

    Args:
        groups: of every class, the index of its group on the level above; a class alone in its group has no triplets.
        margin: in units of d.
        most: triplets per class.
        weight: reached after `warmup_fraction` of the run, along half a cosine from 0.
    """

    groups_K: Tensor
    current_weight: Tensor

    def __init__(
        self,
        *,
        groups: Sequence[int],
        margin: float = 0.6,
        most: int = 200,
        weight: float = 0.5,
        warmup_fraction: float = 0.5,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.most = most
        self.weight = weight
        self.warmup_fraction = warmup_fraction
        # On the CPU even if the weights are built on the meta device: no other worker sends what is not in the state.
        self.register_buffer("groups_K", torch.tensor(groups, device="cpu"), persistent=False)
        self.register_buffer("current_weight", torch.zeros((), device="cpu"), persistent=False)
        self.set_progress(0.0)

    def set_progress(self, fraction: float) -> None:
        """Set the weight: `fraction` of the run is done."""
        done = 1.0 if fraction >= self.warmup_fraction else fraction / self.warmup_fraction
        self.current_weight.fill_(self.weight * 0.5 * (1 - math.cos(math.pi * done)))

    def forward(self, embedding_BEhw: Tensor, ids_BHW: Tensor) -> Tensor:
        """The loss times the current weight."""
        return self.current_weight * self.unweighted(embedding_BEhw, ids_BHW)

    def unweighted(self, embedding_BEhw: Tensor, ids_BHW: Tensor) -> Tensor:
        """See the class.

        Args:
            embedding_BEhw: of length 1 in every cell, as `Projection` gives it: its products are cosines.
        """
        wide = wide_dtype(embedding_BEhw.dtype)
        ids_P = _nearest(ids_BHW, embedding_BEhw.shape[2:]).flatten()
        is_valid_P = ids_P != IGNORE
        ids_P = ids_P.long().where(is_valid_P, 0)
        classes_K1 = torch.arange(len(self.groups_K), device=ids_P.device)[:, None]
        is_own_KP = (ids_P == classes_K1) & is_valid_P
        is_group_KP = (self.groups_K[ids_P] == self.groups_K[:, None]) & is_valid_P

        chosen = torch.stack((is_own_KP, is_group_KP & ~is_own_KP, ~is_group_KP & is_valid_P))
        ranks = chosen.cumsum(dim=2)
        counts_K = ranks[:, :, -1].amin(dim=0).clamp(max=self.most)
        rank_P = ranks[0].gather(0, ids_P[None])[0]  # from 1, of the anchor in its class
        positions_2P = _positions(ranks[1:], ids_P, rank_P)
        embedding_PE = embedding_BEhw.to(wide).movedim(1, -1).flatten(0, 2)
        # F.embedding, because its backward pass adds up the rows that are chosen often in a fixed order.
        positive_PE, negative_PE = F.embedding(positions_2P, embedding_PE)
        excess_P = (embedding_PE * (negative_PE - positive_PE)).sum(dim=1) + self.margin
        is_triplet_P = is_valid_P & (rank_P <= counts_K[ids_P])
        mean_K = is_own_KP.to(wide) @ (excess_P.relu() * is_triplet_P) / counts_K.clamp(min=1)
        return mean_K.sum() / (counts_K > 0).sum().clamp(min=1)


def _nearest(ids_BHW: Tensor, map_hw: Sequence[int]) -> Tensor:
    """Ids on a coarser grid, as `F.interpolate(mode="nearest")`, which takes no integers."""
    for dim, size in zip((1, 2), map_hw, strict=True):
        source = torch.arange(size, device=ids_BHW.device) * ids_BHW.shape[dim] // size
        ids_BHW = ids_BHW.index_select(dim, source)
    return ids_BHW


def _positions(ranks_2KP: Tensor, row_P: Tensor, wanted_P: Tensor) -> Tensor:
    """int64 [2, P]: where the ranks in a row reach the wanted one; arbitrary if they do not.

    Args:
        ranks_2KP: of two tables; ascending from 0 or 1, at most P.
    """
    _, num_rows, num_pixels = ranks_2KP.shape
    # All rows of both as one ascending sequence.
    step = num_pixels + 1
    offsets = torch.arange(2 * num_rows, device=ranks_2KP.device).view(2, num_rows, 1)
    rows_2P = torch.stack((row_P, row_P + num_rows))
    found_2P = torch.searchsorted((ranks_2KP + offsets * step).flatten(), wanted_P + rows_2P * step)
    return (found_2P - rows_2P * num_pixels).clamp(0, num_pixels - 1)
