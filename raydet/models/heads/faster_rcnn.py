"""Faster R-CNN's two stages behind our own batch: boxes from anchors, then boxes from boxes.

Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, arXiv 1506.01497. The stages are in
`rpn` and `box`; what differs from torchvision's is said there.

Departures from torchvision's detector:
1. Its resizing transform is not used: images come letterboxed to one canvas. Boxes are clipped to each image's
   valid part, as torchvision clips them to the image before padding.
2. Labels count from 0 outside; inside, 0 is background and object classes count from 1.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from raydet.models.heads.box import BoxHeads
from raydet.models.heads.rpn import RegionProposals
from raydet.models.heads.targets import full_precision, targets_of
from raydet.ops.rows import row_table
from raydet.structures import Batch, Detections


class Judged(NamedTuple):
    """Detections and losses of the same images."""

    detections: list[Detections]
    losses: dict[str, Tensor]


class FasterRCNN(nn.Module):
    """Both stages on one pyramid."""

    def __init__(self, *, rpn: RegionProposals, roi_heads: BoxHeads) -> None:
        super().__init__()
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(
        self, pyramid: Mapping[str, Tensor], batch: Batch, *, with_losses: bool = False
    ) -> dict[str, Tensor] | list[Detections] | Judged:
        """Four losses in training mode, one `Detections` per image (canvas pixels) in evaluation mode; there both
        with `with_losses`, the losses of as many proposals as at test.
        """
        maps_BCHW = list(pyramid.values())
        finest = maps_BCHW[0]
        # A CPU pools boxes from the table, in full precision; a GPU reads the sampled anchors' surroundings only.
        dtype = full_precision(finest.new_empty(0)).dtype if finest.device.type == "cpu" else finest.dtype
        table = row_table(maps_BCHW, dtype=dtype)
        valid_hw = [(height, width) for height, width in batch.valid_hw.tolist()]  # host sync
        targets = targets_of(batch) if self.training or with_losses else None
        proposals, losses = self.rpn(
            maps_BCHW, table, canvas_hw=batch.canvas_hw, valid_hw=valid_hw, targets=targets
        )
        if targets is None:
            return self.roi_heads.detections(maps_BCHW, table, proposals, valid_hw)
        losses = {**losses, **self.roi_heads.losses(maps_BCHW, table, proposals, targets)}
        # A box that is not finite overlaps nothing and would be learnt from as background, without a word.
        losses["loss_box_reg"] = losses["loss_box_reg"] * (1.0 + 0.0 * targets.boxes_BG4.sum())
        if self.training:
            return losses
        return Judged(self.roi_heads.detections(maps_BCHW, table, proposals, valid_hw), losses)
