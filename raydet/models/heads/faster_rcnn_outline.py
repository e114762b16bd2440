"""The head on fake tensors: its own layers and matching, with the worst case for everything that depends on values.

NMS, sampling and the assignment of boxes to levels depend on values, which fake tensors do not have. Here every image
has the maximal number of proposals and samples. Everything large runs unchanged: the dense logits, the overlaps, the
sampled anchors' neighbourhoods, the pooled boxes, the MLP. When the head's own code changes, the order of calls below
has to follow; a test compares the bytes with those of a real step.

Legend: B batch, C channels, H W map, A anchors, G ground truths, N proposals before NMS, P after, S sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raydet.models.heads.base import TARGETS, DeviceType, Head
from raydet.models.heads.box import FOREGROUND_IOU, ROI_CELLS, BoxHeads
from raydet.models.heads.rpn import BACKGROUND_IOU, RegionProposals
from raydet.models.heads.rpn import FOREGROUND_IOU as ANCHOR_IOU
from raydet.models.heads.targets import full_precision
from raydet.ops.matching import match
from raydet.ops.rows import RowTable, row_table
from raydet.structures import Batch, HeadOutput, Want

RPN = "RPN"
ROI_HEADS = "RoI heads"


class FasterRCNNOutline(Head):
    """Replaces the real head (`rpn` and `roi_heads`) on fake tensors, with one loss; see `Head.outline`."""

    loss_names = ("loss",)
    last_row = ROI_HEADS

    def __init__(
        self,
        *,
        rpn: RegionProposals,
        roi_heads: BoxHeads,
        device_type: DeviceType,
        enter: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.device_type = device_type
        self.enter = enter

    def forward(self, pyramid: Mapping[str, Tensor], batch: Batch, *, want: Want = "losses") -> HeadOutput:
        maps_BCHW = list(pyramid.values())
        is_cpu = self.device_type == "cpu"
        self.enter(RPN)
        dtype = full_precision(maps_BCHW[0].new_empty(0)).dtype if is_cpu else maps_BCHW[0].dtype
        table = row_table(maps_BCHW, dtype=dtype)
        cells = sum(height * width for height, width in table.sizes_hw)
        anchors_A4 = torch.empty(cells * self.rpn.num_ratios, 4)
        with torch.no_grad():
            self._propose(maps_BCHW)
            self.enter(TARGETS)
            self._match_anchors(anchors_A4, batch)
        self.enter(RPN)
        loss = self._anchor_loss(table, batch.size, len(anchors_A4))
        self.enter(TARGETS)
        with torch.no_grad():
            self._match_proposals(batch)
        self.enter(ROI_HEADS)
        return HeadOutput({"loss": loss + self._box_loss(maps_BCHW, table, batch.size)}, None)

    def parts(self, pyramid: Mapping[str, Tensor]) -> Mapping[str, Callable[[], object]]:
        """Nothing: operations are counted on the real head."""
        return {}

    def _propose(self, maps_BCHW: Sequence[Tensor]) -> None:
        with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"), cache_enabled=False):
            logits, deltas = self.rpn.head(list(maps_BCHW))
        logits = [full_precision(x.permute(0, 2, 3, 1).flatten(1)) for x in logits]
        deltas = [full_precision(x.permute(0, 2, 3, 1).reshape(len(x), -1, 4)) for x in deltas]
        kept = sum(min(self.rpn.pre_nms_top_n[0], x.shape[1]) for x in logits)
        # NMS keeps the overlaps of one image's boxes as bits.
        torch.empty(kept, math.ceil(kept / 64), dtype=torch.int64)

    def _match_anchors(self, anchors_A4: Tensor, batch: Batch) -> None:
        matched_BA = match(
            batch.boxes_xyxy,
            batch.labels >= 0,
            anchors_A4[None],
            high=ANCHOR_IOU,
            low=BACKGROUND_IOU,
            keep_best=True,
        )
        labels_BA = matched_BA.long() - matched_BA.long()
        # Indices of the negative anchors, which are nearly all.
        torch.empty(labels_BA.numel(), 2, dtype=torch.int64)

    def _anchor_loss(self, table: RowTable, images: int, anchors: int) -> Tensor:
        size = images * min(self.rpn.batch_size_per_image, anchors)
        sample_2S = torch.empty(2, size, dtype=torch.int64)  # image and anchor
        rows_S9 = torch.empty(size, 9, dtype=torch.int64)  # `neighbour_rows` depends on values
        logits_S, deltas_S4 = self.rpn.head_at(table, rows_S9, sample_2S[1])
        target_S4 = torch.empty_like(deltas_S4)
        return nn.functional.binary_cross_entropy_with_logits(
            logits_S, torch.empty_like(logits_S)
        ) + nn.functional.smooth_l1_loss(deltas_S4, target_S4)

    def _match_proposals(self, batch: Batch) -> None:
        proposals = self.rpn.post_nms_top_n[0] + batch.labels.shape[1]
        match(
            batch.boxes_xyxy,
            batch.labels >= 0,
            torch.empty(batch.size, proposals, 4),
            high=FOREGROUND_IOU,
            low=FOREGROUND_IOU,
            keep_best=False,
        )

    def _box_loss(self, maps_BCHW: Sequence[Tensor], table: RowTable, images: int) -> Tensor:
        size = images * self.roi_heads.batch_size_per_image
        if self.device_type == "cpu":
            boxes_S4, image_S = torch.empty(size, 4), torch.empty(size, dtype=torch.int64)
            pooled = self.roi_heads.pooled(maps_BCHW, table, boxes_S4, image_S)
        else:
            pooled = _pooled_on_gpu(maps_BCHW[: len(self.roi_heads.strides)], size)
        logits_SK, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        labels_S = torch.empty(size, dtype=torch.int64)
        return nn.functional.cross_entropy(full_precision(logits_SK), labels_S) + full_precision(deltas).sum()


def _pooled_on_gpu(maps_BCHW: Sequence[Tensor], size: int) -> Tensor:
    """torchvision's RoIAlign, level by level: in fp32 under autocast, saving nothing but the boxes."""
    share = math.ceil(size / len(maps_BCHW))
    parts = [_Pooled.apply(full_precision(x_BCHW), share).to(x_BCHW.dtype) for x_BCHW in maps_BCHW]
    return torch.cat(parts)[torch.empty(size, dtype=torch.int64)]


class _Pooled(torch.autograd.Function):
    """[B, C, H, W] -> [S, C, 7, 7]; saves nothing but a shape."""

    @staticmethod
    def forward(context: Any, x_BCHW: Tensor, size: int) -> Tensor:
        context.shape = x_BCHW.shape
        x_BCHW.contiguous()  # the operator reads channels-last maps from a copy
        return x_BCHW.new_empty(size, x_BCHW.shape[1], ROI_CELLS, ROI_CELLS)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_empty(context.shape), None
