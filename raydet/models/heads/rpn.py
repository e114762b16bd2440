"""Region proposal network: boxes from anchors, with a backward pass only at the sampled anchors.

Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, arXiv 1506.01497. Layers, anchors, box
coding and NMS are torchvision's (BSD-3-Clause, imported); losses, sampling and proposals equal theirs in numbers.

Departures from torchvision's `RegionProposalNetwork`:
1. In training the head runs twice: over all cells without a graph, for the proposals, and with a graph over the 3 x 3
   neighbourhoods of the at most 256 sampled anchors per image. No other cell has a gradient, so this is exact, and it
   saves a third of the step.
2. Only the best anchors of each level are decoded, not all of them.
3. Anchors are matched and sampled for the whole batch at once.
4. Under autocast the convolutions run in lower precision; logits, boxes and losses are fp32.

Legend: B batch, C channels, H W map, A anchors (of all levels), R anchors per cell, N kept anchors, S sampled anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.boxes import batched_nms, clip_boxes_to_image, remove_small_boxes

from raydet.models.heads.targets import Targets, full_precision
from raydet.ops.matching import IGNORED, match, sample_balanced
from raydet.ops.rows import RowTable

FOREGROUND_IOU = 0.7
BACKGROUND_IOU = 0.3
POSITIVE_FRACTION = 0.5
NMS_IOU = 0.7
MIN_SIDE_PX = 1e-3
SMOOTH_L1_BETA = 1 / 9


class RegionProposals(nn.Module):
    """The first stage; thresholds are torchvision's defaults.

    Args:
        anchor_sizes: one per level, in canvas pixels.
        aspect_ratios: height over width, the same on every level.
        pre_nms_top_n: proposals per level before NMS, in training and at test.
        post_nms_top_n: proposals per image after NMS, in training and at test.
        batch_size_per_image: anchors sampled for the loss.
    """

    def __init__(
        self,
        *,
        channels: int,
        anchor_sizes: Sequence[float],
        aspect_ratios: Sequence[float],
        pre_nms_top_n: tuple[int, int],
        post_nms_top_n: tuple[int, int],
        batch_size_per_image: int,
    ) -> None:
        super().__init__()
        self.anchor_generator = AnchorGenerator(
            sizes=tuple((size,) for size in anchor_sizes),
            aspect_ratios=(tuple(aspect_ratios),) * len(anchor_sizes),
        )
        self.head = RPNHead(channels, len(aspect_ratios))
        self.num_ratios = len(aspect_ratios)
        self.pre_nms_top_n = pre_nms_top_n
        self.post_nms_top_n = post_nms_top_n
        self.batch_size_per_image = batch_size_per_image
        self.box_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))

    def forward(
        self,
        maps_BCHW: Sequence[Tensor],
        table: RowTable,
        *,
        canvas_hw: tuple[int, int],
        valid_hw: Sequence[tuple[int, int]],
        targets: Targets | None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals of every image, and two losses if there are targets.

        Args:
            maps_BCHW: the pyramid, the finest map first.
            table: the same maps as rows; only read for the losses.
            canvas_hw: height and width in pixels of the batch.
            valid_hw: height and width in pixels of each image inside the canvas.
        """
        anchors_A4 = self.anchors(maps_BCHW, canvas_hw)
        with torch.no_grad():
            proposals = self._proposals(maps_BCHW, anchors_A4, valid_hw)
        return proposals, {} if targets is None else self._losses(table, anchors_A4, targets)

    def anchors(self, maps_BCHW: Sequence[Tensor], canvas_hw: tuple[int, int]) -> Tensor:
        """The anchors of one image, level after level, row by row: [A, 4]."""
        # The generator only reads shapes, dtype and device, and would repeat its result for every image.
        pixel = full_precision(maps_BCHW[0].new_empty(1, 1, 1, 1))
        maps = [pixel.expand(1, 1, *x_BCHW.shape[-2:]) for x_BCHW in maps_BCHW]
        images = ImageList(pixel.expand(1, 1, *canvas_hw), [canvas_hw])
        (anchors_A4,) = self.anchor_generator(images, maps)
        return anchors_A4

    def _proposals(
        self, maps_BCHW: Sequence[Tensor], anchors_A4: Tensor, valid_hw: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        # Without the cache: it would keep these casts of the weights, which have no graph, for the losses.
        device = anchors_A4.device.type
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=False):
            logits, deltas = self.head(list(maps_BCHW))
        logits = [full_precision(x.permute(0, 2, 3, 1).flatten(1)) for x in logits]
        deltas = [full_precision(x.permute(0, 2, 3, 1).reshape(len(x), -1, 4)) for x in deltas]
        sizes = [x.shape[1] for x in logits]
        kept_logits, kept_boxes, kept_levels = [], [], []
        for level, (logits_BA, deltas_BA4, level_anchors) in enumerate(
            zip(logits, deltas, anchors_A4.split(sizes), strict=True)
        ):
            top_BN = logits_BA.topk(min(self._train_or_test(self.pre_nms_top_n), sizes[level]), dim=1)
            deltas_BN4 = deltas_BA4.gather(1, top_BN.indices[:, :, None].expand(-1, -1, 4))
            boxes = self.box_coder.decode_single(
                deltas_BN4.flatten(0, 1), level_anchors[top_BN.indices].flatten(0, 1)
            )
            kept_boxes.append(boxes.view_as(deltas_BN4))
            kept_logits.append(top_BN.values)
            kept_levels.append(top_BN.indices.new_full((boxes.shape[0] // len(logits_BA),), level))
        levels_N = torch.cat(kept_levels)
        scores_BN = torch.cat(kept_logits, dim=1).sigmoid()
        return [
            self._suppressed(boxes_N4, scores_N, levels_N, size_hw)
            for boxes_N4, scores_N, size_hw in zip(
                torch.cat(kept_boxes, dim=1), scores_BN, valid_hw, strict=True
            )
        ]

    def _suppressed(
        self, boxes_N4: Tensor, scores_N: Tensor, levels_N: Tensor, size_hw: tuple[int, int]
    ) -> Tensor:
        """Proposals after NMS within each level, best first."""
        boxes_N4 = clip_boxes_to_image(boxes_N4, size_hw)
        keep = remove_small_boxes(boxes_N4, MIN_SIDE_PX)
        boxes_N4, scores_N, levels_N = boxes_N4[keep], scores_N[keep], levels_N[keep]
        keep = batched_nms(boxes_N4, scores_N, levels_N, NMS_IOU)
        return boxes_N4[keep[: self._train_or_test(self.post_nms_top_n)]]

    def _train_or_test(self, numbers: tuple[int, int]) -> int:
        return numbers[0] if self.training else numbers[1]

    def _losses(self, table: RowTable, anchors_A4: Tensor, targets: Targets) -> dict[str, Tensor]:
        with torch.no_grad():
            matched_BA = match(
                targets.boxes_BG4,
                targets.is_real_BG,
                anchors_A4[None],
                high=FOREGROUND_IOU,
                low=BACKGROUND_IOU,
                keep_best=True,
            )
            labels_BA = (matched_BA >= 0).long() - (matched_BA == IGNORED).long()
            sample = sample_balanced(
                labels_BA, size=self.batch_size_per_image, positive_fraction=POSITIVE_FRACTION
            )
            image, anchor = sample.image_S[: sample.num_positive], sample.box_S[: sample.num_positive]
            truth_4 = targets.boxes_BG4[image, matched_BA[image, anchor]]
            target_deltas = self.box_coder.encode_single(truth_4, anchors_A4[anchor])
            labels_S = labels_BA[sample.image_S, sample.box_S]
        rows_S9 = self.neighbour_rows(table, sample.image_S, sample.box_S // self.num_ratios)
        logits_S, deltas_S4 = self.head_at(table, rows_S9, sample.box_S)
        box_loss = F.smooth_l1_loss(
            deltas_S4[: sample.num_positive], target_deltas, beta=SMOOTH_L1_BETA, reduction="sum"
        )
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(logits_S, labels_S.to(logits_S.dtype)),
            "loss_rpn_box_reg": box_loss / len(logits_S),
        }

    def head_at(self, table: RowTable, rows_S9: Tensor, anchor_S: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [S] and deltas [S, 4], fp32, of anchors with the 3 x 3 neighbourhoods `rows_S9`."""
        ((convolution, _),) = self.head.conv
        # Rows repeat; the backward pass of an embedding adds them in a fixed order, that of an index does not.
        patches_S9C = F.embedding(rows_S9, table.rows_RC)
        weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
        hidden_SC = F.linear(patches_S9C.flatten(1), weight, convolution.bias).relu()
        predictors = self.head.cls_logits, self.head.bbox_pred
        logits_SR, deltas_S4R = (F.linear(hidden_SC, p.weight.flatten(1), p.bias) for p in predictors)
        item, ratio = torch.arange(len(anchor_S), device=anchor_S.device), anchor_S % self.num_ratios
        deltas_S4 = deltas_S4R.unflatten(1, (self.num_ratios, 4))[item, ratio]
        return full_precision(logits_SR[item, ratio]), full_precision(deltas_S4)

    def neighbour_rows(self, table: RowTable, image_S: Tensor, cell_S: Tensor) -> Tensor:
        """Table rows [S, 9] of the 3 x 3 cells around each cell; cells are numbered level after level, like anchors."""
        cells = [height * width for height, width in table.sizes_hw]
        ends = torch.tensor(cells).cumsum(0)
        level_S = torch.bucketize(cell_S, ends.to(cell_S.device, non_blocking=True), right=True)
        first = (ends - torch.tensor(cells)).tolist()
        height_S1, width_S1, first_S1, start_S1 = (
            table.per_level(values, level_S, torch.int64)[:, None]
            for values in (
                [height for height, _ in table.sizes_hw],
                [width for _, width in table.sizes_hw],
                first,
                table.starts,
            )
        )
        cell_S1 = cell_S[:, None] - first_S1  # within its level
        step_9 = torch.arange(9, device=cell_S.device)
        y_S9 = cell_S1 // width_S1 + step_9 // 3 - 1
        x_S9 = cell_S1 % width_S1 + step_9 % 3 - 1
        is_inside_S9 = (y_S9 >= 0) & (y_S9 < height_S1) & (x_S9 >= 0) & (x_S9 < width_S1)
        row_S9 = start_S1 + (image_S[:, None] * height_S1 + y_S9) * width_S1 + x_S9
        return torch.where(is_inside_S9, row_S9, table.zero_row)
