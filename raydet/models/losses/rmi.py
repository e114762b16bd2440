"""Region mutual information: how much the 3 x 3 neighbourhoods of the labels say that those of the scores do not.

Region Mutual Information Loss for Semantic Segmentation, arXiv 1910.12037, as SegHiero and HieraSeg use it: for every
image and output, with the nine labels y (0 or 1) and the nine sigmoid scores p at every position as vectors,
    M = S_yy - S_yp (S_pp + a I)^-1 S_py,    S_uv = sum over the positions of u v',    a = 1e-3,
    loss = log det(M + a I) / 18, mean over the images, sum over the outputs.
`hieraseg` first pools labels and scores by maximum (3 x 3, stride 3) and subtracts the means over the positions;
`seghiero` does neither. The sums are not divided by the number of positions.

Departures from the published codes:
1. A position counts only if all nine pixels (pooled: all nine cells, of which each has a labelled pixel) are labelled.
   There the scores of ignored pixels are set to 0 and their labels to 0 (SegHiero: to class 0), and both count.
2. No 1e-8 inside the logarithm: a keeps the matrix regular. It changes the seventh digit.
3. A few outputs of an image at a time, gradient included, so that the nine-fold copies in fp64 are small. What an
   output that the image lacks costs is constant, and it has no gradient, as in theirs.

With X = S_yp (S_pp + a I)^-1, the gradient is -(X' (M + a I)^-1 (y - X p)) / 9: the part of the labels that the scores
do not explain, which is computed without the cancellation that differentiating the inverses one by one has.

Legend: B batch, N images of a chunk, V outputs, C outputs of a chunk, K classes, L levels, h w map of the logits,
H W canvas, I J grid of scores (canvas, or pooled), P positions, D = 9 neighbours.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raydet.models.losses.pixelwise import chunks, elements_per_chunk, wide_dtype
from raydet.models.losses.upsampling import Upsampling
from raydet.structures import IGNORE

Form = Literal["seghiero", "hieraseg"]

RADIUS = 3
"""Side of a neighbourhood, and of the pooling windows."""
ALPHA = 1e-3
SCORE_MIN = 1e-6


class RMI(nn.Module):
    """See the module.

    Args:
        weight: of the loss.
        form: which of the two published codes.
    """

    def __init__(self, *, weight: float = 1.0, form: Form = "hieraseg") -> None:
        super().__init__()
        self.weight = weight
        self.form: Form = form

    def forward(self, logits_BVhw: Tensor, ids_BHW: Tensor, path_LK: Tensor) -> Tensor:
        """The loss times its weight; 0 if no image has a position that counts. fp32, or fp64 for fp64 logits.

        Args:
            path_LK: int64, the output of every class, and of the groups it belongs to.
        """
        loss: Tensor = _RMI.apply(logits_BVhw, ids_BHW, path_LK, self.form)
        return self.weight * loss


class _RMI(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BVhw: Tensor, ids_BHW: Tensor, path_LK: Tensor, form: Form) -> Tensor:
        wide = wide_dtype(logits_BVhw.dtype)
        device, (batch, num_outputs, h, w) = logits_BVhw.device, logits_BVhw.shape
        height, width = ids_BHW.shape[1:]
        upsampling = Upsampling((h, w), (height, width), device=device, dtype=wide)
        grid = _Grid(ids_BHW, pool=form == "hieraseg")
        share_B = grid.has_position_B / grid.has_position_B.sum().clamp(min=1)
        total = torch.zeros((), device=device, dtype=torch.float64)
        gradient_BVhw = (
            torch.zeros(logits_BVhw.shape, device=device, dtype=wide) if ctx.needs_input_grad[0] else None
        )
        copies = 2 * RADIUS**2 * grid.num_positions + height * width
        for images, outputs in chunks(batch, num_outputs, copies, most=4 * elements_per_chunk(device)):
            logits_NCHW = upsampling.rows(logits_BVhw[images, outputs].to(wide), slice(0, height))
            scores_NCIJ, source_NCIJ = grid.scores(logits_NCHW, images)
            vectors_NCP = grid.vectors(scores_NCIJ, grid.labels(images, outputs, path_LK), images, form)
            scores_NCP, labels_NCP = vectors_NCP.split(RADIUS**2, dim=2)
            value_NC, factors = _log_det(scores_NCP @ vectors_NCP.mT, labels_NCP @ labels_NCP.mT)
            total += (value_NC.sum(dim=1) * share_B[images]).sum()
            if gradient_BVhw is None:
                continue
            slope_NCDP = factors @ vectors_NCP
            slope_NCIJ = _added(slope_NCDP, scores_NCIJ.shape).to(wide)
            slope_NCIJ.mul_(scores_NCIJ * (1 - scores_NCIJ) * share_B[images, None, None, None].to(wide))
            slope_NCHW = grid.unpooled(slope_NCIJ, source_NCIJ)
            upsampling.add_adjoint(slope_NCHW, slice(0, height), to_NKhw=gradient_BVhw[images, outputs])
        ctx.dtype = logits_BVhw.dtype
        ctx.save_for_backward(gradient_BVhw)
        return total.to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_BVhw,) = ctx.saved_tensors
        return (gradient * gradient_BVhw).to(ctx.dtype), None, None, None


class _Grid:
    """Where the scores and labels of a batch lie: the pixels of the canvas, or cells of pooled ones."""

    def __init__(self, ids_BHW: Tensor, *, pool: bool) -> None:
        self.pool = pool
        self.memory = torch.empty(0, device=ids_BHW.device, dtype=torch.float64)
        self.is_labelled_BHW = ids_BHW != IGNORE
        self.ids_BHW = ids_BHW.long().where(self.is_labelled_BHW, 0)
        is_valid_B1IJ = self._pooled(self.is_labelled_BHW[:, None].float())
        # A position is valid if the minimum over its neighbourhood is.
        valid_B1IJ = -F.max_pool2d(-is_valid_B1IJ, RADIUS, stride=1)
        self.is_position_B1P = valid_B1IJ.flatten(2).double()
        self.has_position_B = self.is_position_B1P.amax(dim=(1, 2))
        self.num_positions = self.is_position_B1P.shape[2]

    def scores(self, logits_NCHW: Tensor, images: slice) -> tuple[Tensor, Tensor | None]:
        """Sigmoid scores [N, C, I, J], and the pixels of the canvas that pooled ones come from."""
        if not self.pool:
            return logits_NCHW.sigmoid(), None
        is_ignored = ~self.is_labelled_BHW[images, None]
        best_NCIJ, source_NCIJ = F.max_pool2d(
            logits_NCHW.masked_fill(is_ignored, -torch.inf), RADIUS, padding=1, return_indices=True
        )
        return best_NCIJ.sigmoid(), source_NCIJ

    def unpooled(self, slope_NCIJ: Tensor, source_NCIJ: Tensor | None) -> Tensor:
        """Slopes [N, C, H, W] at the pixels that the scores come from."""
        if source_NCIJ is None:
            return slope_NCIJ
        flat = slope_NCIJ.new_zeros(*slope_NCIJ.shape[:2], self.ids_BHW[0].numel())
        # No pixel is in two windows, so this writes every place once.
        flat.scatter_(2, source_NCIJ.flatten(2), slope_NCIJ.flatten(2))
        return flat.unflatten(2, self.ids_BHW.shape[1:])

    def labels(self, images: slice, outputs: slice, path_LK: Tensor) -> Tensor:
        """float32 [N, C, I, J]: 1 where a labelled pixel belongs to the output."""
        own_C11 = torch.arange(outputs.start, outputs.stop, device=path_LK.device)[:, None, None]
        ids_N1HW = self.ids_BHW[images, None]
        is_own = torch.zeros((), dtype=torch.bool, device=path_LK.device)
        for path_K in path_LK:  # an output is on one level only
            is_own = is_own | (path_K[ids_N1HW] == own_C11)
        return self._pooled((is_own & self.is_labelled_BHW[images, None]).float())

    def vectors(self, scores_NCIJ: Tensor, labels_NCIJ: Tensor, images: slice, form: Form) -> Tensor:
        """float64 [N, C, 2 D, P]: the scores, then the labels of every neighbourhood; 0 where it does not count."""
        *outer, height, width = scores_NCIJ.shape
        rows, columns = height - RADIUS + 1, width - RADIUS + 1
        vectors = self._memory(*outer, 2 * RADIUS**2, rows, columns)
        counts_N1P = self.is_position_B1P[images, None]
        counts = self.is_position_B1P[images].unflatten(2, (rows, columns))
        for half, x_NCIJ in enumerate((scores_NCIJ + SCORE_MIN, labels_NCIJ)):
            for i, part in enumerate(_neighbours(x_NCIJ.double())):
                torch.mul(part, counts, out=vectors[:, :, half * RADIUS**2 + i])
        vectors_NCP = vectors.flatten(3)
        if form == "hieraseg":
            means = vectors_NCP.sum(dim=-1, keepdim=True) / counts_N1P.sum(dim=-1, keepdim=True).clamp(min=1)
            vectors_NCP.sub_(means).mul_(counts_N1P)
        return vectors_NCP

    def _memory(self, *shape: int) -> Tensor:
        """float64, what it was filled with before: new pages of memory cost a CPU as much as filling them."""
        size = math.prod(shape)
        if self.memory.numel() < size:
            self.memory = torch.empty(size, device=self.ids_BHW.device, dtype=torch.float64)
        return self.memory[:size].view(shape)

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, RADIUS, padding=1) if self.pool else x


def _log_det(products: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C]: the loss; and [N, C, D, 2 D]: what the vectors are to be multiplied by for its gradient with respect to
    the scores.

    Args:
        products: float64 [N, C, D, 2 D], S_pp and S_py.
        labels: float64 [N, C, D, D], S_yy.
    """
    size = RADIUS**2
    ridge = ALPHA * torch.eye(size, device=products.device, dtype=products.dtype)
    scores, mixed = products.split(size, dim=-1)
    # The forms without checks, because a check would be a host sync; the ridge keeps both matrices regular.
    explained = torch.cholesky_solve(mixed, torch.linalg.cholesky_ex(scores + ridge).L)  # X'
    root = torch.linalg.cholesky_ex(labels + ridge - mixed.mT @ explained).L
    value = root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1) / size
    weighted = torch.cholesky_solve(explained.mT, root).mT / size  # X' (M + a I)^-1 / 9
    return value, torch.cat((weighted @ explained.mT, -weighted), dim=-1)


def _added(slope_NCDP: Tensor, shape: torch.Size) -> Tensor:
    """[N, C, I, J]: the slopes of all neighbourhoods, added up at each score."""
    total = slope_NCDP.new_zeros(shape)
    for part, slope_NCP in zip(_neighbours(total), slope_NCDP.unbind(2), strict=True):
        part += slope_NCP.view(part.shape)
    return total


def _neighbours(x: Tensor) -> list[Tensor]:
    """Views of the D neighbours of all positions, in rows and columns."""
    height, width = (size - RADIUS + 1 for size in x.shape[-2:])
    return [x[..., i : i + height, j : j + width] for i in range(RADIUS) for j in range(RADIUS)]
