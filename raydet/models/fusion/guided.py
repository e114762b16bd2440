"""The guided attention of GAFF in front of a fusion, and the two losses that guide it.

Guided Attentive Feature Fusion for Multispectral Pedestrian Detection (WACV 2021). Written from notes on the paper,
which comes without code.

A mask m per modality is trained to show where it sees an object (`intra`). A weight w per modality, a softmax over the
two, is trained to pick the modality whose mask has the smaller error (`inter`). Each map x becomes x (1 + m) (1 + w),
or x (1 + m) without weights. Both maps then enter the fusion.

Departures from the paper:
1. The paper takes the mean of both maps; here the fusion under test merges them.
2. Masks and weights come from linear layers over channels instead of 1x1 convolutions: the encoder's initialisation
   would start convolutions with a single output at saturated masks.
3. DICE (V-Net, arXiv 1606.04797) has 1 added to numerator and denominator, so it is defined without objects.
4. Each loss is a mean over images, modalities and stages: it does not depend on the number of stages or on the
   micro-batches.

Parameters, with C channels: 2C + 2 for the masks, 4C + 2 for the weights.

Legend: B batch, C channels, H W map, G ground truths (padded).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.fusion.base import Fusion, FusionOutput, Guides
from raydet.models.heads.targets import Targets, full_precision
from raydet.models.layout import hw_of
from raydet.ops.box_mask import box_mask

MARGIN = 0.1
"""Errors that differ by less are a tie: the cell does not count in the choice loss."""


class Guided(Fusion):
    """Guided attention in front of `fusion`, with masks and, if `has_choice`, weights; see the module."""

    def __init__(self, fusion: Fusion, *, channels: int, has_choice: bool) -> None:
        super().__init__()
        self.fusion = fusion
        self.mask_rgb = nn.Linear(channels, 1)
        self.mask_aux = nn.Linear(channels, 1)
        self.choice = nn.Linear(2 * channels, 2) if has_choice else None

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        masks_B2HW = torch.cat(
            (_per_pixel(self.mask_rgb, rgb_BCHW), _per_pixel(self.mask_aux, aux_BCHW)), dim=1
        )
        attention_B2HW, choice_B2HW = 1 + masks_B2HW.sigmoid(), None
        if self.choice is not None:
            choice_B2HW = _per_pixel(self.choice, torch.cat((rgb_BCHW, aux_BCHW), dim=1))
            attention_B2HW = attention_B2HW * (1 + choice_B2HW.softmax(dim=1))
        output: FusionOutput = self.fusion(rgb_BCHW * attention_B2HW[:, :1], aux_BCHW * attention_B2HW[:, 1:])
        return output._replace(guides=Guides(masks_B2HW, choice_B2HW))

    def fused_channels(self, channels: int) -> int:
        return self.fusion.fused_channels(channels)


def _per_pixel(layer: nn.Linear, x_BCHW: Tensor) -> Tensor:
    return layer(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def guide_losses(
    guides: Sequence[Guides], targets: Targets, *, canvas_hw: tuple[int, int], valid_hw_B2: Tensor
) -> dict[str, Tensor]:
    """`loss_guide_intra`, and `loss_guide_inter` if modalities are weighed; padding does not count.

    Args:
        guides: the guides of every stage that has them, all with or all without a choice.
        targets: boxes, whose class is not used.
        canvas_hw: height and width in pixels that a map covers.
        valid_hw_B2: height and width in pixels of the images inside the canvas.
    """
    image_B14 = F.pad(valid_hw_B2.flip(1), (2, 0))[:, None].to(targets.boxes_BG4.dtype)
    intra, inter = [], []
    for guide in guides:
        grid = {"map_hw": hw_of(guide.masks_B2HW), "canvas_hw": canvas_hw}
        is_object_B1HW = box_mask(targets.boxes_BG4, targets.is_real_BG, **grid)
        counts_B1HW = box_mask(image_B14, valid_hw_B2[:, :1] > 0, **grid)
        masks_B2HW = full_precision(guide.masks_B2HW).sigmoid()
        intra.append(dice_loss(masks_B2HW, is_object_B1HW, counts_B1HW))
        if guide.choice_B2HW is not None:
            errors_B2HW = (masks_B2HW.detach() - is_object_B1HW.to(masks_B2HW.dtype)).abs()
            inter.append(choice_loss(full_precision(guide.choice_B2HW), errors_B2HW, counts_B1HW))
    losses = {"loss_guide_intra": torch.stack(intra).mean()}
    return {**losses, "loss_guide_inter": torch.stack(inter).mean()} if inter else losses


def dice_loss(masks_B2HW: Tensor, is_object_B1HW: Tensor, counts_B1HW: Tensor) -> Tensor:
    """Mean over all masks m (0..1) of 1 - (2 sum(m g) + 1) / (sum(m^2) + sum(g) + 1), with ground truth g.

    Args:
        masks_B2HW: masks of both modalities.
        is_object_B1HW: ground truth.
        counts_B1HW: False for cells that are ignored.
    """
    masks_B2HW = masks_B2HW * counts_B1HW
    truth_B1HW = (is_object_B1HW & counts_B1HW).to(masks_B2HW.dtype)
    overlap_B2 = (masks_B2HW * truth_B1HW).sum(dim=(2, 3))
    sizes_B2 = masks_B2HW.square().sum(dim=(2, 3)) + truth_B1HW.sum(dim=(2, 3))
    return (1 - (2 * overlap_B2 + 1) / (sizes_B2 + 1)).mean()


def choice_loss(logits_B2HW: Tensor, errors_B2HW: Tensor, counts_B1HW: Tensor) -> Tensor:
    """Cross-entropy with the modality of the smaller error, in cells where the errors differ by more than `MARGIN`.

    The mean over such cells of an image (0 if there are none), then the mean over images.

    Args:
        logits_B2HW: logits of the choice.
        errors_B2HW: absolute errors of both modalities' masks.
        counts_B1HW: False for cells that are ignored.
    """
    lead_BHW = errors_B2HW[:, 1] - errors_B2HW[:, 0]
    is_clear_BHW = (lead_BHW.abs() > MARGIN) & counts_B1HW[:, 0]
    log_rgb_BHW, log_aux_BHW = logits_B2HW.log_softmax(dim=1).unbind(dim=1)
    loss_BHW = -torch.where(lead_BHW > 0, log_rgb_BHW, log_aux_BHW) * is_clear_BHW
    return (loss_BHW.sum(dim=(1, 2)) / is_clear_BHW.sum(dim=(1, 2)).clamp(min=1)).mean()
