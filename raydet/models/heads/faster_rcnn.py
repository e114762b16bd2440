"""Faster R-CNN: proposals from anchors, then boxes from proposals.

Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, arXiv 1506.01497. The stages are in
`rpn` and `box`, with their departures from torchvision's.

Departures from torchvision's detector:
1. Images are already letterboxed to one canvas, so there is no resizing transform. Boxes are clipped to each image's
   valid part, as torchvision clips them to the image before padding.
2. Labels count from 0 outside the head; inside, 0 is background and object classes count from 1.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from raydet.models.heads.base import DeviceType, Head
from raydet.models.heads.box import ROI_CELLS, BoxHeads
from raydet.models.heads.faster_rcnn_outline import FasterRCNNOutline
from raydet.models.heads.rpn import RegionProposals
from raydet.models.heads.targets import full_precision, nan_if_boxes_not_finite, targets_of
from raydet.ops.rows import row_table
from raydet.structures import Batch, HeadOutput, Want


class FasterRCNN(Head):
    """Both stages on one pyramid."""

    loss_names = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")

    def __init__(self, *, rpn: RegionProposals, roi_heads: BoxHeads) -> None:
        super().__init__()
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(self, pyramid: Mapping[str, Tensor], batch: Batch, *, want: Want) -> HeadOutput:
        """Four losses, and one `Detections` per image (canvas pixels).

        In evaluation mode the losses are those of the proposals at test.
        """
        maps_BCHW = list(pyramid.values())
        finest = maps_BCHW[0]
        # On a CPU boxes are pooled from the table, in full precision; a GPU only reads the sampled anchors from it.
        dtype = full_precision(finest.new_empty(0)).dtype if finest.device.type == "cpu" else finest.dtype
        table = row_table(maps_BCHW, dtype=dtype)
        valid_hw = [(height, width) for height, width in batch.valid_hw.tolist()]  # host sync
        targets = targets_of(batch) if want != "predictions" else None
        proposals, losses = self.rpn(
            maps_BCHW, table, canvas_hw=batch.canvas_hw, valid_hw=valid_hw, targets=targets
        )
        if targets is not None:
            losses = {**losses, **self.roi_heads.losses(maps_BCHW, table, proposals, targets)}
            losses["loss_box_reg"] = nan_if_boxes_not_finite(losses["loss_box_reg"], targets.boxes_BG4)
        detections = None
        if want != "losses":
            detections = self.roi_heads.detections(maps_BCHW, table, proposals, valid_hw)
        return HeadOutput(losses, detections)

    def outline(self, device_type: DeviceType, enter: Callable[[str], None]) -> Head:
        """See `Head`."""
        return FasterRCNNOutline(rpn=self.rpn, roi_heads=self.roi_heads, device_type=device_type, enter=enter)

    def parts(self, pyramid: Mapping[str, Tensor]) -> Mapping[str, Callable[[], object]]:
        """Both stages, the second on the maximal number of proposals."""
        maps_BCHW, rpn, heads = list(pyramid.values()), self.rpn, self.roi_heads
        anchors = [x_BCHW.shape[2] * x_BCHW.shape[3] * rpn.num_ratios for x_BCHW in maps_BCHW]
        candidates = sum(min(rpn.pre_nms_top_n[1], count) for count in anchors)
        proposals = min(rpn.post_nms_top_n[1], candidates)
        pooled = maps_BCHW[0].new_empty(proposals, maps_BCHW[0].shape[1], ROI_CELLS, ROI_CELLS)
        return {
            "rpn": lambda: rpn.head(maps_BCHW),
            "roi_heads": lambda: heads.box_predictor(heads.box_head(pooled)),
        }
