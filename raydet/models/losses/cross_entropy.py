"""Cross-entropy of pixels, plain or in the focal form (Focal Loss for Dense Object Detection, arXiv 1708.02002).

Legend: B batch, N images of a chunk, C classes of the loss (those of the set, or groups), L levels of a class
tree, h w map of the logits, H W canvas, R rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydet.models.losses.base import PixelLoss
from raydet.models.losses.pixelwise import pixel_means


@dataclass(frozen=True)
class CrossEntropyTerm:
    """-(1 - p)^gamma log p, p the softmax probability of a pixel's class; see `PixelTerm`."""

    channels: slice
    level: int = 0
    """The level of the class tree that the channels are of."""
    focal_gamma: float = 0.0

    def __call__(
        self, logits_NCRW: Tensor, labels_NLRW: Tensor, is_valid_N1RW: Tensor, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        own_N1RW = labels_NLRW[:, self.level, None] - self.channels.start
        # Not log_softmax, because the gradient takes its exponentials.
        highest_N1RW = logits_NCRW.amax(dim=1, keepdim=True)
        p_NCRW = (logits_NCRW - highest_N1RW).exp_()
        total_N1RW = p_NCRW.sum(dim=1, keepdim=True)
        log_p_N1RW = logits_NCRW.gather(1, own_N1RW).sub_(highest_N1RW).sub_(total_N1RW.log())
        miss_N1RW = -torch.expm1(log_p_N1RW)  # 1 - p
        factor_N1RW = is_valid_N1RW
        if self.focal_gamma:
            factor_N1RW = factor_N1RW * miss_N1RW**self.focal_gamma
        # By columns first: a sum over all of a tensor depends on the number of threads.
        value = -(log_p_N1RW * factor_N1RW).sum(dim=-1).sum()
        if not with_gradient:
            return value, None
        if self.focal_gamma:
            # The floor is for gamma < 1, whose power of 0 is infinite.
            power_N1RW = miss_N1RW.clamp(min=torch.finfo(miss_N1RW.dtype).tiny) ** (self.focal_gamma - 1)
            slope_N1RW = self.focal_gamma * power_N1RW * (1 - miss_N1RW) * log_p_N1RW
            factor_N1RW = factor_N1RW - is_valid_N1RW * slope_N1RW
        gradient_NCRW = p_NCRW.mul_(factor_N1RW / total_N1RW)
        return value, gradient_NCRW.scatter_(1, own_N1RW, -miss_N1RW * factor_N1RW)


class CrossEntropy(PixelLoss):
    """The mean over the pixels that have a label."""

    names = ("loss_ce",)

    def __init__(self, *, num_classes: int, focal_gamma: float = 0.0) -> None:
        super().__init__()
        self.num_outputs = num_classes
        self.focal_gamma = focal_gamma

    def losses(
        self, logits_BKhw: Tensor, embedding_BEhw: Tensor | None, ids_BHW: Tensor
    ) -> dict[str, Tensor]:
        term = CrossEntropyTerm(slice(0, self.num_outputs), focal_gamma=self.focal_gamma)
        return dict(zip(self.names, pixel_means(logits_BKhw, ids_BHW, (term,)), strict=True))
