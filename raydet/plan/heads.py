"""The head on tensors without memory: its own layers and matching, with sizes in place of what depends on values.

NMS, sampling and the choice of a level per box look at numbers, which fake tensors do not have. Here the worst case
stands in: every image fills its quota of proposals and of samples. Everything that is large runs as it is: the dense
logits, the overlaps, the sampled anchors' surroundings, the pooled boxes, the MLP. When the head's own code changes,
the order of calls below has to follow; a test compares the bytes with those of a real step.

Legend: B batch, C channels, H W map, A anchors, G ground truths, N proposals before NMS, P after, S sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raydet.models.heads.box import FOREGROUND_IOU, ROI_CELLS, BoxHeads
from raydet.models.heads.rpn import BACKGROUND_IOU, RegionProposals
from raydet.models.heads.rpn import FOREGROUND_IOU as ANCHOR_IOU
from raydet.models.heads.targets import full_precision
from raydet.ops.matching import match
from raydet.ops.rows import RowTable, row_table
from raydet.structures import Batch

RPN = "RPN"
ROI_HEADS = "RoI heads"
TARGETS = "logits and targets"

DeviceType = Literal["cuda", "cpu"]


class HeadInOutline(nn.Module):
    """Takes the real head's place, with one loss for all.

    Args:
        rpn: the real one.
        roi_heads: the real one.
        device_type: boxes are pooled by other kernels on a CPU.
        tell: called with the ledger's row of what comes next.
    """

    def __init__(
        self,
        *,
        rpn: RegionProposals,
        roi_heads: BoxHeads,
        device_type: DeviceType,
        tell: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.rpn = rpn
        # The one part that counts on the host, which fake tensors do not allow.
        rpn.surroundings = _surroundings  # type: ignore[method-assign]
        self.roi_heads = roi_heads
        self.device_type = device_type
        self.tell = tell

    def forward(
        self, pyramid: dict[str, Tensor], batch: Batch, *, with_losses: bool = False
    ) -> dict[str, Tensor]:
        maps_BCHW = list(pyramid.values())
        is_cpu = self.device_type == "cpu"
        self.tell(RPN)
        dtype = full_precision(maps_BCHW[0].new_empty(0)).dtype if is_cpu else maps_BCHW[0].dtype
        table = row_table(maps_BCHW, dtype=dtype)
        cells = sum(height * width for height, width in table.sizes_hw)
        anchors_A4 = torch.empty(cells * self.rpn.num_ratios, 4)
        with torch.no_grad():
            self._propose(maps_BCHW)
            self.tell(TARGETS)
            self._match_anchors(anchors_A4, batch)
        self.tell(RPN)
        loss = self._anchor_loss(table, batch.size, len(anchors_A4))
        self.tell(TARGETS)
        with torch.no_grad():
            self._match_proposals(batch)
        self.tell(ROI_HEADS)
        return {"loss": loss + self._box_loss(maps_BCHW, table, batch.size)}

    def _propose(self, maps_BCHW: Sequence[Tensor]) -> None:
        with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"), cache_enabled=False):
            logits, deltas = self.rpn.head(list(maps_BCHW))
        logits = [full_precision(x.permute(0, 2, 3, 1).flatten(1)) for x in logits]
        deltas = [full_precision(x.permute(0, 2, 3, 1).reshape(len(x), -1, 4)) for x in deltas]
        kept = sum(min(self.rpn.pre_nms_top_n[0], x.shape[1]) for x in logits)
        # The overlaps of one image's boxes, a bit each.
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
        # Where the negative ones are, and which of them are drawn: nearly all are negative.
        torch.empty(labels_BA.numel(), 2, dtype=torch.int64)

    def _anchor_loss(self, table: RowTable, images: int, anchors: int) -> Tensor:
        size = images * min(self.rpn.batch_size_per_image, anchors)
        image_S, anchor_S = (torch.empty(size, dtype=torch.int64) for _ in range(2))
        logits_S, deltas_S4 = self.rpn.head_at(table, image_S, anchor_S)
        wanted_S4 = torch.empty_like(deltas_S4)
        return nn.functional.binary_cross_entropy_with_logits(
            logits_S, torch.empty_like(logits_S)
        ) + nn.functional.smooth_l1_loss(deltas_S4, wanted_S4)

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
        loss: Tensor = (
            nn.functional.cross_entropy(full_precision(logits_SK), labels_S) + full_precision(deltas).sum()
        )
        return loss


def _surroundings(table: RowTable, image_S: Tensor, cell_S: Tensor) -> Tensor:
    """In place of `RegionProposals.surroundings`: numbers of rows, [S, 9]."""
    return torch.empty(len(image_S), 9, dtype=torch.int64)


def _pooled_on_gpu(maps_BCHW: Sequence[Tensor], size: int) -> Tensor:
    """As torchvision's operator, level by level: in fp32 under autocast, nothing kept but the boxes."""
    share = math.ceil(size / len(maps_BCHW))
    parts: list[Tensor] = [
        _Pooled.apply(full_precision(x_BCHW), share).to(x_BCHW.dtype) for x_BCHW in maps_BCHW
    ]
    return torch.cat(parts)[torch.empty(size, dtype=torch.int64)]


class _Pooled(torch.autograd.Function):
    """[B, C, H, W] -> [S, C, 7, 7]; remembers a shape."""

    @staticmethod
    def forward(context: Any, x_BCHW: Tensor, size: int) -> Tensor:
        context.shape = x_BCHW.shape
        x_BCHW.contiguous()  # the operator reads channels-last maps from a copy
        return x_BCHW.new_empty(size, x_BCHW.shape[1], ROI_CELLS, ROI_CELLS)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_empty(context.shape), None
