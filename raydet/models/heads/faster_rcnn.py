"""Faster R-CNN's two stages behind our own batch: boxes from anchors, then boxes from boxes.

Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, arXiv 1506.01497. The layers,
matching, sampling and losses are torchvision's (BSD-3-Clause, imported).

Departures from torchvision's detector:
1. Its resizing transform is not used: pictures come letterboxed to one canvas. Boxes are clipped to each picture's
   valid part, as torchvision clips them to the picture before padding.
2. The strides of RoI pooling are given, not guessed: torchvision derives them from the pictures of the first batch it
   sees, and a letterboxed picture that fills little of its canvas would make it guess wrong, for good.
3. RoIs may be pooled from the `pool` level as well (`pool_level_rois`), as in the published runs.
4. Everything is fp32, also under autocast.
5. Labels count from 0 outside; inside, 0 is background and object classes count from 1.

Legend: B batch, C channels, H W map, N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign

from raydet.models.necks.fpn import LEVELS
from raydet.structures import Batch, Detections

ROI_CELLS = 7
"""RoIs are pooled to 7 x 7 cells."""
LEVEL_STRIDES = (4, 8, 16, 32, 64)


def proposal_network(
    *,
    channels: int,
    anchor_sizes: Sequence[float],
    aspect_ratios: Sequence[float],
    pre_nms_top_n: tuple[int, int],
    post_nms_top_n: tuple[int, int],
    batch_size_per_image: int,
) -> RegionProposalNetwork:
    """The first stage; thresholds are torchvision's defaults.

    Args:
        channels: of the pyramid.
        anchor_sizes: one per level, in canvas pixels.
        aspect_ratios: height over width, the same on every level.
        pre_nms_top_n: proposals per level before NMS, in training and at test.
        post_nms_top_n: proposals per picture after NMS, in training and at test.
        batch_size_per_image: anchors sampled for the loss.
    """
    anchors = AnchorGenerator(
        sizes=tuple((size,) for size in anchor_sizes),
        aspect_ratios=(tuple(aspect_ratios),) * len(anchor_sizes),
    )
    return RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=batch_size_per_image,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), pre_nms_top_n, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), post_nms_top_n, strict=True)),
        nms_thresh=0.7,
    )


def box_heads(
    *,
    channels: int,
    num_classes: int,
    hidden: int,
    batch_size_per_image: int,
    pool_level_rois: bool,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> RoIHeads:
    """The second stage; thresholds of the matching are torchvision's defaults.

    Args:
        channels: of the pyramid.
        num_classes: object classes, without background.
        hidden: width of the two-layer MLP.
        batch_size_per_image: proposals sampled for the loss.
        pool_level_rois: pool large boxes from the `pool` level.
        score_threshold: detections below it are dropped.
        nms_threshold: of two detections of one class with a larger overlap the weaker one is dropped.
        max_detections: per picture.
    """
    return RoIHeads(
        roi_pooling(LEVELS if pool_level_rois else LEVELS[:-1]),
        TwoMLPHead(channels * ROI_CELLS**2, hidden),
        FastRCNNPredictor(hidden, num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=batch_size_per_image,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        detections_per_img=max_detections,
    )


def roi_pooling(levels: Sequence[str]) -> MultiScaleRoIAlign:
    """RoIAlign over some levels, with strides that do not depend on the first batch (departure 2)."""
    pooling = MultiScaleRoIAlign(list(levels), output_size=ROI_CELLS, sampling_ratio=2)
    pooling.scales = [1.0 / stride for stride in LEVEL_STRIDES[: len(levels)]]
    # Level k has stride 2^k; a box of 224 x 224 pixels belongs to level 4 (equation 1 of the FPN paper).
    pooling.map_levels = LevelMapper(
        k_min=2,
        k_max=len(levels) + 1,
        canonical_scale=pooling.canonical_scale,
        canonical_level=pooling.canonical_level,
    )
    return pooling


class FasterRCNN(nn.Module):
    """Both stages on one pyramid."""

    def __init__(self, *, rpn: RegionProposalNetwork, roi_heads: RoIHeads) -> None:
        super().__init__()
        self.rpn = rpn
        self.roi_heads = roi_heads

    def forward(self, pyramid: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor] | list[Detections]:
        """Four losses in training mode, one `Detections` per picture (canvas pixels) in evaluation mode."""
        device = next(iter(pyramid.values())).device
        with torch.autocast(device.type, enabled=False):
            return self._forward_fp32({level: x_BCHW.float() for level, x_BCHW in pyramid.items()}, batch)

    def _forward_fp32(self, pyramid: dict[str, Tensor], batch: Batch) -> dict[str, Tensor] | list[Detections]:
        # One host sync for everything that torchvision wants as plain numbers.
        rows = torch.cat((batch.valid_hw, batch.counts[:, None]), dim=1).tolist()
        valid_hw = [(height, width) for height, width, _ in rows]
        targets = targets_of(batch, [count for _, _, count in rows]) if self.training else None
        # Of the pictures' tensor only the canvas size is read.
        images = ImageList(next(iter(batch.modalities.values())), valid_hw)
        proposals, rpn_losses = self.rpn(images, pyramid, targets)
        found, box_losses = self.roi_heads(pyramid, proposals, valid_hw, targets)
        if self.training:
            return {**rpn_losses, **box_losses}
        return [Detections(row["boxes"], row["scores"], row["labels"] - 1) for row in found]


def targets_of(batch: Batch, counts: Sequence[int]) -> list[dict[str, Tensor]]:
    """Ground truth as torchvision wants it: one dict per picture, without padding, labels from 1."""
    return [
        {"boxes": boxes_xyxy[:count], "labels": labels[:count] + 1}
        for boxes_xyxy, labels, count in zip(batch.boxes_xyxy, batch.labels, counts, strict=True)
    ]
