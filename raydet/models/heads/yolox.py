"""The head of YOLOX: an object per cell of the pyramid, without anchors, with classes and box in branches of their own.

YOLOX: Exceeding YOLO Series in 2021, arXiv 2107.08430. Written from the paper and from measured behaviour; losses equal
those of the authors' code in numbers, without its optional L1 loss.

Departures from YOLOX:
1. Cells are assigned to objects for the whole batch at once (`simota`), and boxes are decoded at the candidates only.
   The loss has no host sync.
2. The box loss may have a weight for small objects (`size_aware`).
3. Boxes are clipped to each image's valid part, and the best `max_detections` are kept.
4. Under autocast the convolutions run in lower precision; logits, boxes and losses are fp32.

Legend: B images, C channels, H W map, A cells (of all levels), D = 5 + classes, G ground truths (padded), K candidates
(padded), N detections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.boxes import batched_nms, box_convert, clip_boxes_to_image

from raydet.models.heads.base import Head
from raydet.models.heads.simota import Cells, assign_simota, candidates, cells_of, overlaps
from raydet.models.heads.size_aware import SizeAware, size_weight
from raydet.models.heads.targets import full_precision, nan_if_boxes_not_finite
from raydet.models.layout import as_tokens, hw_of, pointwise
from raydet.models.necks.pafpn import ConvNormAct
from raydet.structures import Batch, Detections, HeadOutput, Want

BOX_WEIGHT = 5.0
PRIOR = 0.01
"""Initial score of every class and of objectness."""

Score = Literal["product", "class"]


class Branches(nn.Module):
    """What a level of the pyramid has."""

    def __init__(self, *, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.stem = ConvNormAct(channels, hidden, 1)
        self.class_convs = nn.Sequential(*(ConvNormAct(hidden, hidden, 3) for _ in range(2)))
        self.box_convs = nn.Sequential(*(ConvNormAct(hidden, hidden, 3) for _ in range(2)))
        self.box = nn.Conv2d(hidden, 4, 1)
        self.objectness = nn.Conv2d(hidden, 1, 1)
        self.classes = nn.Conv2d(hidden, num_classes, 1)
        for layer in (self.objectness, self.classes):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Box (4), objectness and class logits of every cell, fp32 [B, H * W, D]."""
        x_BCHW = self.stem(x_BCHW)
        box_BCHW, class_BCHW = self.box_convs(x_BCHW), self.class_convs(x_BCHW)
        rows_BCHW = (
            pointwise(self.box, box_BCHW),
            pointwise(self.objectness, box_BCHW),
            pointwise(self.classes, class_BCHW),
        )
        return full_precision(torch.cat([as_tokens(x) for x in rows_BCHW], dim=2))


class YOLOX(Head):
    """Branches per level.

    Args:
        channels: of each level of the pyramid, the finest first.
        hidden: width of the branches.
        size_aware, size_factor: see `size_weight`.
        score: of a detection: objectness times class, or class alone. The threshold and NMS are always by the
            product.
        score_threshold: detections below it are dropped.
        nms_threshold: IoU above which the weaker of two detections of one class is dropped.
        max_detections: detections per image.
    """

    loss_names = ("loss_iou", "loss_objectness", "loss_class")

    def __init__(
        self,
        *,
        channels: Sequence[int],
        hidden: int,
        num_classes: int,
        size_aware: SizeAware,
        size_factor: float,
        score: Score,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            Branches(channels=width, hidden=hidden, num_classes=num_classes) for width in channels
        )
        self.size_aware: SizeAware = size_aware
        self.size_factor = size_factor
        self.score = score
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections

    def forward(self, pyramid: Mapping[str, Tensor], batch: Batch, *, want: Want) -> HeadOutput:
        """Three losses, and one `Detections` per image (canvas pixels)."""
        maps_BCHW = list(pyramid.values())
        sizes_hw = [hw_of(x_BCHW) for x_BCHW in maps_BCHW]
        strides = [batch.canvas_hw[0] // height for height, _ in sizes_hw]
        cells = cells_of(sizes_hw, strides, maps_BCHW[0].device)
        rows_BAD = self._rows(maps_BCHW)
        losses = {} if want == "predictions" else self._losses(rows_BAD, cells, sizes_hw, strides, batch)
        detections = None
        if want != "losses":
            valid_hw = [(height, width) for height, width in batch.valid_hw.tolist()]  # host sync
            detections = self._detections(rows_BAD, cells, valid_hw)
        return HeadOutput(losses, detections)

    def parts(self, pyramid: Mapping[str, Tensor]) -> Mapping[str, Callable[[], object]]:
        """The branches of all levels."""
        return {"branches": lambda: self._rows(list(pyramid.values()))}

    def _rows(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """What `Branches` return, of all levels: [B, A, D]."""
        rows = [branches(x_BCHW) for branches, x_BCHW in zip(self.branches, maps_BCHW, strict=True)]
        return torch.cat(rows, dim=1)

    def _losses(
        self,
        rows_BAD: Tensor,
        cells: Cells,
        sizes_hw: list[tuple[int, int]],
        strides: list[int],
        batch: Batch,
    ) -> dict[str, Tensor]:
        truth_BG4 = box_convert(batch.boxes_xyxy, "xyxy", "cxcywh")
        is_real_BG = torch.arange(truth_BG4.shape[1], device=truth_BG4.device) < batch.counts[:, None]
        labels_BG = batch.labels.clamp(min=0)
        cell_BK, is_candidate_BK = candidates(truth_BG4[..., :2], is_real_BG, sizes_hw, strides)
        rows_BKD = rows_BAD.gather(1, cell_BK[..., None].expand(-1, -1, rows_BAD.shape[2]))
        box_BK4, objectness_BK, class_BKC = rows_BKD[..., :4], rows_BKD[..., 4], rows_BKD[..., 5:]
        found = assign_simota(
            cell_BK,
            is_candidate_BK,
            cells=cells,
            boxes_BK4=decoded(box_BK4.detach(), cells, cell_BK),
            class_logits_BKC=class_BKC,
            objectness_BK=objectness_BK,
            truth_BG4=truth_BG4,
            labels_BG=labels_BG,
            is_real_BG=is_real_BG,
        )
        is_positive_BK = found.is_positive_BK
        num_positive = is_positive_BK.sum().clamp(min=1)
        target_BK4 = truth_BG4.gather(1, found.truth_BK[..., None].expand(-1, -1, 4))
        # Zeros in front of the exponential: what is not used must not overflow.
        used_BK4 = decoded(box_BK4.masked_fill(~is_positive_BK[..., None], 0.0), cells, cell_BK)
        weight_BK = size_weight(target_BK4[..., 2] * target_BK4[..., 3], self.size_aware, self.size_factor)
        box_loss_BK = weight_BK * (1 - overlaps(used_BK4, target_BK4) ** 2)
        label_BK = labels_BG.gather(1, found.truth_BK)
        is_class_BKC = label_BK[..., None] == torch.arange(class_BKC.shape[2], device=label_BK.device)
        class_target_BKC = is_class_BKC * found.iou_BK[..., None]
        class_loss_BKC = F.binary_cross_entropy_with_logits(class_BKC, class_target_BKC, reduction="none")
        # Cross entropy against 0 everywhere, and what a target of 1 changes of it.
        objectness_loss = F.softplus(rows_BAD[..., 4]).sum() - (objectness_BK * is_positive_BK).sum()
        box_loss = BOX_WEIGHT * (box_loss_BK * is_positive_BK).sum() / num_positive
        return {
            "loss_iou": nan_if_boxes_not_finite(box_loss, batch.boxes_xyxy),
            "loss_objectness": objectness_loss / num_positive,
            "loss_class": (class_loss_BKC * is_positive_BK[..., None]).sum() / num_positive,
        }

    def _detections(
        self, rows_BAD: Tensor, cells: Cells, valid_hw: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        every_A = torch.arange(rows_BAD.shape[1], device=rows_BAD.device)
        boxes_BA4 = box_convert(decoded(rows_BAD[..., :4], cells, every_A), "cxcywh", "xyxy")
        class_BA, label_BA = rows_BAD[..., 5:].sigmoid().max(dim=2)
        product_BA = class_BA * rows_BAD[..., 4].sigmoid()
        score_BA = product_BA if self.score == "product" else class_BA
        detections = []
        for image, size_hw in enumerate(valid_hw):
            keep_N = (product_BA[image] >= self.score_threshold).nonzero()[:, 0]
            boxes_N4 = clip_boxes_to_image(boxes_BA4[image, keep_N], size_hw)
            product_N, labels_N = product_BA[image, keep_N], label_BA[image, keep_N]
            best_N = batched_nms(boxes_N4, product_N, labels_N, self.nms_threshold)[: self.max_detections]
            scores_N = score_BA[image, keep_N[best_N]]
            best_N = best_N[scores_N.argsort(descending=True, stable=True)]
            detections.append(Detections(boxes_N4[best_N], score_BA[image, keep_N[best_N]], labels_N[best_N]))
        return detections


def decoded(box_4: Tensor, cells: Cells, cell: Tensor) -> Tensor:
    """Centre, width and height in pixels of what the branches predict at some cells."""
    corner_2 = torch.stack((cells.column_A[cell], cells.row_A[cell]), dim=-1)
    stride_1 = cells.stride_A[cell][..., None]
    return torch.cat(((box_4[..., :2] + corner_2) * stride_1, box_4[..., 2:].exp() * stride_1), dim=-1)
