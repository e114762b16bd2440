"""The second stage: classes and better boxes from proposals.

Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, arXiv 1506.01497. Layers, box coding and
NMS are torchvision's (BSD-3-Clause, imported); losses, sampling and detections equal theirs in numbers.

Departures from torchvision's `RoIHeads`:
1. On a CPU boxes are pooled by gathers of rows (`ops.roi_align`); elsewhere by torchvision's operator.
2. Proposals are matched, sampled and encoded for the whole batch at once.
3. The strides of the pooling are given. torchvision infers them from the first batch it sees and keeps them, and infers
   wrong ones if letterboxed images fill little of the canvas.
4. Boxes may be pooled from the `pool` level as well, as in the published runs.
5. Under autocast the linear layers run in lower precision; logits, boxes and losses are fp32.

Legend: B batch, C channels, P proposals (padded), G ground truths (padded), S sampled proposals, K classes + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import roi_align as torchvision_roi_align
from torchvision.ops.boxes import batched_nms, clip_boxes_to_image, remove_small_boxes

from raydet.models.heads.targets import Targets, full_precision
from raydet.ops.matching import match, sample_balanced
from raydet.ops.roi_align import level_of, roi_align
from raydet.ops.rows import RowTable
from raydet.structures import Detections

ROI_CELLS = 7
ROI_SAMPLES = 2
LEVEL_STRIDES = (4, 8, 16, 32, 64)
FOREGROUND_IOU = 0.5
POSITIVE_FRACTION = 0.25
MIN_SIDE_PX = 1e-2
SMOOTH_L1_BETA = 1 / 9


class BoxHeads(nn.Module):
    """Pooling, a two-layer MLP, a class and a box per class; matching thresholds are torchvision's defaults.

    Args:
        num_classes: object classes, without background.
        hidden: width of the MLP.
        batch_size_per_image: proposals sampled for the loss.
        num_levels: pyramid levels that boxes are pooled from, the finest first.
        score_threshold: detections below it are dropped.
        nms_threshold: IoU above which the weaker of two detections of one class is dropped.
        max_detections: detections per image.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        hidden: int,
        batch_size_per_image: int,
        num_levels: int,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.box_head = TwoMLPHead(channels * ROI_CELLS**2, hidden)
        self.box_predictor = FastRCNNPredictor(hidden, num_classes + 1)
        self.batch_size_per_image = batch_size_per_image
        self.strides = LEVEL_STRIDES[:num_levels]
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))

    def losses(
        self, maps_BCHW: Sequence[Tensor], table: RowTable, proposals: Sequence[Tensor], targets: Targets
    ) -> dict[str, Tensor]:
        """Classification and box losses of sampled proposals."""
        with torch.no_grad():
            image_S, boxes_S4, labels_S, target_S4 = self._sampled(proposals, targets)
        logits_SK, deltas_SK4 = self._predictions(maps_BCHW, table, boxes_S4, image_S)
        positive = (labels_S > 0).nonzero()[:, 0]
        box_loss = F.smooth_l1_loss(
            deltas_SK4[positive, labels_S[positive]],
            target_S4[positive],
            beta=SMOOTH_L1_BETA,
            reduction="sum",
        )
        return {
            "loss_classifier": F.cross_entropy(logits_SK, labels_S),
            "loss_box_reg": box_loss / len(labels_S),
        }

    def detections(
        self,
        maps_BCHW: Sequence[Tensor],
        table: RowTable,
        proposals: Sequence[Tensor],
        valid_hw: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Detections of each image, best first; labels count from 0."""
        sizes = [len(boxes_P4) for boxes_P4 in proposals]
        boxes_4 = torch.cat(list(proposals))
        image = torch.arange(len(sizes), device=boxes_4.device).repeat_interleave(
            torch.tensor(sizes, device=boxes_4.device)
        )
        logits, deltas = self._predictions(maps_BCHW, table, boxes_4, image)
        boxes = self.box_coder.decode_single(deltas.flatten(1), boxes_4).view_as(deltas)
        return [
            self._best(boxes_PK4, scores_PK, size_hw)
            for boxes_PK4, scores_PK, size_hw in zip(
                boxes.split(sizes), logits.softmax(dim=1).split(sizes), valid_hw, strict=True
            )
        ]

    def _sampled(
        self, proposals: Sequence[Tensor], targets: Targets
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image, box, label and target deltas of every sampled proposal."""
        # Ground truths are proposals too: without them the first steps would have no positive box.
        boxes_BP4 = torch.cat((pad_sequence(list(proposals), batch_first=True), targets.boxes_BG4), dim=1)
        is_real_BP = pad_sequence([x.new_ones(len(x), dtype=torch.bool) for x in proposals], batch_first=True)
        is_real_BP = torch.cat((is_real_BP, targets.is_real_BG), dim=1)
        matched_BP = match(
            targets.boxes_BG4,
            targets.is_real_BG,
            boxes_BP4,
            high=FOREGROUND_IOU,
            low=FOREGROUND_IOU,
            keep_best=False,
        )
        truth_BP = matched_BP.clamp(min=0)
        labels_BP = targets.labels_BG.gather(1, truth_BP).masked_fill(matched_BP < 0, 0)
        sample = sample_balanced(
            labels_BP.masked_fill(~is_real_BP, -1),
            size=self.batch_size_per_image,
            positive_fraction=POSITIVE_FRACTION,
        )
        image_S, box_S = sample.image_S, sample.box_S
        boxes_S4 = boxes_BP4[image_S, box_S]
        truth_S4 = targets.boxes_BG4[image_S, truth_BP[image_S, box_S]]
        deltas_S4 = self.box_coder.encode_single(truth_S4, boxes_S4)
        return image_S, boxes_S4, labels_BP[image_S, box_S], deltas_S4

    def _predictions(
        self, maps_BCHW: Sequence[Tensor], table: RowTable, boxes_S4: Tensor, image_S: Tensor
    ) -> tuple[Tensor, Tensor]:
        """fp32 logits [S, K] and deltas [S, K, 4]."""
        pooled = self.pooled(maps_BCHW, table, boxes_S4, image_S)
        logits_SK, deltas = self.box_predictor(self.box_head(pooled))
        return full_precision(logits_SK), full_precision(deltas).unflatten(1, (-1, 4))

    def pooled(
        self, maps_BCHW: Sequence[Tensor], table: RowTable, boxes_S4: Tensor, image_S: Tensor
    ) -> Tensor:
        """Features of the boxes, [S, C, 7, 7]."""
        boxes_S4 = boxes_S4.nan_to_num()  # if the weights diverge, indices must still be inside the maps
        level_S = level_of(boxes_S4, len(self.strides))
        if boxes_S4.device.type == "cpu":
            return roi_align(
                table,
                boxes_S4,
                image_K=image_S,
                level_K=level_S,
                strides=self.strides,
                cells=ROI_CELLS,
                samples=ROI_SAMPLES,
            )
        return self._pooled_by_level(maps_BCHW, boxes_S4, image_S, level_S)

    def _pooled_by_level(
        self, maps_BCHW: Sequence[Tensor], boxes_S4: Tensor, image_S: Tensor, level_S: Tensor
    ) -> Tensor:
        rois_S5 = torch.cat((image_S[:, None].to(boxes_S4.dtype), boxes_S4), dim=1)
        indices = [(level_S == level).nonzero()[:, 0] for level in range(len(self.strides))]
        per_level = [
            torchvision_roi_align(x_BCHW, rois_S5[index], ROI_CELLS, 1.0 / stride, ROI_SAMPLES, aligned=False)
            for x_BCHW, index, stride in zip(maps_BCHW, indices, self.strides, strict=False)
        ]
        return torch.cat(per_level)[torch.cat(indices).argsort()]

    def _best(self, boxes_PK4: Tensor, scores_PK: Tensor, size_hw: tuple[int, int]) -> Detections:
        """NMS over all foreground classes of all proposals; column 0 is background."""
        boxes = clip_boxes_to_image(boxes_PK4, size_hw)[:, 1:].flatten(0, 1)
        scores = scores_PK[:, 1:].flatten()
        labels = torch.arange(scores_PK.shape[1] - 1, device=scores.device).repeat(len(scores_PK))
        keep = (scores > self.score_threshold).nonzero()[:, 0]
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = remove_small_boxes(boxes, MIN_SIDE_PX)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.max_detections]
        return Detections(boxes[keep], scores[keep], labels[keep])
