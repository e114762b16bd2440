"""Run a detector over images and collect its detections as rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydet.metrics.coco import ROW_WIDTH, GroundTruth
from raydet.structures import Batch, Detections


class Found(NamedTuple):
    """What a detector made of images."""

    rows: NDArray[np.float64]
    """[N, 7] as `evaluate_coco` takes them."""
    losses_L2: NDArray[np.float64]
    """The loss of every batch, all its parts added, and its number of images."""


@torch.no_grad()
def detect(model: nn.Module, batches: Iterable[tuple[Batch, list[int]]], *, device: torch.device) -> Found:
    """Detections of all images, in source pixels, and the losses.

    Args:
        model: a `Detector`, wrapped or not; left in the mode in which it came.
        batches: batches with the position of each image in the evaluation set; none for a batch that another
            worker has, too.
        device: where the model lives.
    """
    was_training = model.training
    model.eval()
    rows, losses = [np.zeros((0, ROW_WIDTH))], []
    for batch, positions in batches:
        torch.manual_seed(positions[0] if positions else 0)  # losses are of a sample of the boxes
        # By all workers together where the model is sharded.
        detections, parts = model(batch.to(device), with_losses=True)
        for row, position in enumerate(positions):
            valid_hw, source_hw = _hw(batch.valid_hw, row), _hw(batch.source_hw, row)
            rows.append(_rows(detections[row], position, valid_hw, source_hw))
        losses.append((float(sum(parts.values())), len(positions)))
    model.train(was_training)
    return Found(np.concatenate(rows), np.array(losses, dtype=float).reshape(-1, 2))


def mean_loss(losses_L2: NDArray[np.float64]) -> float | None:
    """Per image, the same bits in whatever order the batches come; None without images."""
    losses_L, sizes_L = losses_L2[np.lexsort(losses_L2.T)].T
    return float(losses_L @ sizes_L / sizes_L.sum()) if sizes_L.sum() else None


def ground_truth(targets: Iterable[tuple[Tensor, Tensor, tuple[int, int]]]) -> GroundTruth:
    """The truth of an evaluation set, from what a source says of each image.

    Args:
        targets: boxes_xyxy [N, 4] in source pixels, labels [N], (height, width).
    """
    boxes, labels, index = [np.zeros((0, 4))], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    sizes_hw = []
    for position, (boxes_xyxy, image_labels, size_hw) in enumerate(targets):
        sizes_hw.append(size_hw)
        boxes.append(_xywh(boxes_xyxy))
        labels.append(image_labels.numpy())
        index.append(np.full(len(image_labels), position))
    return GroundTruth(
        num_images=len(sizes_hw),
        image_index=np.concatenate(index),
        boxes_xywh=np.concatenate(boxes),
        labels=np.concatenate(labels),
        sizes_hw=np.array(sizes_hw, dtype=np.int64).reshape(-1, 2),
    )


def _xywh(boxes_xyxy: Tensor) -> NDArray[np.float64]:
    boxes: NDArray[np.float64] = boxes_xyxy.double().cpu().numpy()
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _hw(sizes: Tensor, row: int) -> tuple[int, int]:
    return int(sizes[row, 0]), int(sizes[row, 1])


def _rows(
    found: Detections, position: int, valid_hw: tuple[int, int], source_hw: tuple[int, int]
) -> NDArray[np.float64]:
    found = found.rescaled(valid_hw, source_hw)
    return np.column_stack(
        [
            np.full(len(found.scores), position),
            _xywh(found.boxes_xyxy),
            found.scores.double().cpu().numpy(),
            found.labels.cpu().numpy(),
        ]
    )
