"""Semantic segmentation: the class of every pixel, measured at the size of the source image.

Legend: H W source image, L levels with that of the classes, P labelled pixels, N rows or outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.config import Experiment, SegmentationTask, SplitName
from raydet.data.sources.base import Source
from raydet.data.split import groups_of
from raydet.errors import DataError
from raydet.metrics.boundary import boundary_counts
from raydet.metrics.confusion import BOUNDARIES, DISTANCES, ROW_WIDTH, VIOLATIONS, ConfusionRecords
from raydet.metrics.names import PER_BATCH_IOU, PER_CLASS_IOU, metrics_of
from raydet.metrics.records import score
from raydet.models.build_heads import build_head
from raydet.models.heads.base import Head
from raydet.ops.class_tree import UNDECIDED, ClassTree, contradictions, decode
from raydet.ops.upsample import source_stripes
from raydet.structures import IGNORE, Batch, LogitMaps, mask_of
from raydet.tasks.anomaly_evaluation import AnomalyEvaluation
from raydet.tasks.base import FinalEvaluation, Scores


class Segmentation:
    """See `raydet.tasks.base.Task`."""

    def __init__(self, config: SegmentationTask) -> None:
        self.config = config

    def build_head(self, experiment: Experiment, channels: Sequence[int]) -> Head:
        return build_head(experiment, channels)

    def check_training_images(self, source: Source, indices: Sequence[int]) -> None:
        if any(bool((_mask(source, index) != IGNORE).any()) for index in indices):
            return
        raise DataError(
            f"expected masks with labelled pixels in the training images, got {len(indices)} images without any; check "
            "that the set's classes.yaml belongs to its masks, and data.split (raydet data check shows both)"
        )

    def cost(self, source: Source, index: int) -> int:
        """The same for all: a loss on masks works on the whole canvas, whatever it shows."""
        return 0

    def scorer(self, experiment: Experiment, source: Source, indices: Sequence[int]) -> SegmentationScorer:
        return SegmentationScorer(self.config, experiment, source, indices)

    def final_evaluation(
        self, experiment: Experiment, source: Source, parts: Mapping[SplitName, Sequence[int]]
    ) -> FinalEvaluation | None:
        anomaly = self.config.anomaly
        return None if anomaly is None else AnomalyEvaluation(anomaly.score, experiment, source, parts)

    def results(self, experiment: Experiment) -> Mapping[str, Any]:
        config = self.config
        return {
            "levels": {level.name: list(level.groups) for level in config.levels},
            "decoding": config.decoding,
            "back_off": config.back_off,
            "boundary_px": config.boundary_px,
            "anomaly_score": None if config.anomaly is None else config.anomaly.score,
        }


class SegmentationScorer:
    """See `raydet.tasks.base.Scorer`; rows are those of `raydet.metrics.confusion`.

    Masks are read again at every evaluation: those of a large set would not fit into memory.
    """

    num_columns = ROW_WIDTH

    def __init__(
        self, config: SegmentationTask, experiment: Experiment, source: Source, indices: Sequence[int]
    ) -> None:
        self.config = config
        self.tree = ClassTree(experiment.num_classes, config.levels)
        self.source, self.indices = source, indices
        self.classes = experiment.data.classes
        self.eval_batch = experiment.train.eval_batch
        groups = groups_of(source.group_ids, experiment.data.split)
        self.image_ids = [source.image_ids[index] for index in indices]
        self.group_ids = [groups[index] for index in indices]

    def rows(self, predictions: LogitMaps, batch: Batch, positions: Sequence[int]) -> NDArray[np.float64]:
        """The confusions of a batch, one image at a time: at full size they take more memory than the model."""
        rows = [np.zeros((0, ROW_WIDTH))]
        for row, position in enumerate(positions):
            truth_HW = _mask(self.source, self.indices[position])
            stripes = source_stripes(
                predictions.logits_BNHW[row],
                canvas_hw=batch.canvas_hw,
                valid_hw=_hw(batch.valid_hw, row),
                source_hw=(truth_HW.shape[0], truth_HW.shape[1]),
            )
            rows.append(self._of_image(position, truth_HW.to(predictions.logits_BNHW.device), stripes))
        return np.concatenate(rows)

    def finish(self, rows: NDArray[np.float64]) -> Scores:
        """See `Scorer`. Images without rows are read, and counted as if the class of every pixel was left open."""
        all_rows = [rows]
        for position in sorted(set(range(len(self.indices))) - set(rows[:, 0].astype(int).tolist())):
            truth_HW = _mask(self.source, self.indices[position])
            open_LHW = torch.full((len(self.tree.sizes), *truth_HW.shape), UNDECIDED, dtype=torch.int16)
            all_rows.append(self._compared(position, truth_HW, open_LHW, num_violations=0))
        records = ConfusionRecords.of_rows(
            np.concatenate(all_rows),
            image_ids=np.array(self.image_ids, str),
            group_ids=np.array(self.group_ids, str),
            classes=np.array(self.classes, str),
            levels=np.array([level.name for level in self.config.levels], str),
            sizes=np.array(self.tree.sizes, np.int64),
        )
        metrics: dict[str, float | None] = {}
        for metric in metrics_of(self.config):
            if metric.is_resampleable and not metric.is_final:
                metrics[metric.name] = _or_none(score(records, metric.name))
            elif metric.name == PER_BATCH_IOU:
                metrics[metric.name] = _or_none(records.batch_iou(self.eval_batch))
        names = [f"{PER_CLASS_IOU}{name}" for name in self.classes]
        return Scores(metrics, {name: _or_none(score(records, name)) for name in names}, records)

    def _of_image(self, position: int, truth_HW: Tensor, stripes: Iterable[Tensor]) -> NDArray[np.float64]:
        """The rows of one image.

        Args:
            stripes: the logits at the size of the truth, from top to bottom.
        """
        tree, config, parts, is_violated = self.tree, self.config, [], []
        for stripe_1NHW in stripes:
            parts.append(decode(stripe_1NHW, tree, decoding=config.decoding, back_off=config.back_off)[0])
            if stripe_1NHW.shape[1] > tree.num_classes:
                free_1LHW = decode(stripe_1NHW, tree, decoding="independent")
                is_violated.append(contradictions(free_1LHW, tree)[0])
        violations = (torch.cat(is_violated) & (truth_HW != IGNORE)).sum() if is_violated else 0
        return self._compared(position, truth_HW, torch.cat(parts, dim=1), num_violations=int(violations))

    def _compared(
        self, position: int, truth_HW: Tensor, ids_LHW: Tensor, *, num_violations: int
    ) -> NDArray[np.float64]:
        """The rows of one image, given what `decode` made of it."""
        tree, is_labelled_HW = self.tree, truth_HW != IGNORE
        ids_LP = ids_LHW[:, is_labelled_HW].long()
        truth_LP = tree.ancestors.to(truth_HW.device)[:, truth_HW[is_labelled_HW].long()]
        rows = []
        for level, size in enumerate(tree.sizes):
            found_P = ids_LP[level].where(ids_LP[level] != UNDECIDED, size)
            cells = torch.bincount(truth_LP[level] * (size + 1) + found_P, minlength=size * (size + 1))
            rows.append(_sparse(level, cells.reshape(size, size + 1)))
        distances_P = torch.full_like(truth_LP[0], len(tree.sizes))  # to the lowest level that is right
        for level in reversed(range(len(tree.sizes))):
            distances_P = distances_P.where(ids_LP[level] != truth_LP[level], level)
        rows.append(_sparse(DISTANCES, torch.bincount(distances_P)[:, None]))
        rows.append(_sparse(VIOLATIONS, torch.tensor([[num_violations]])))
        boundaries = boundary_counts(
            truth_HW,
            ids_LHW[0].where(ids_LHW[0] != UNDECIDED, UNDECIDED + 1),
            num_classes=tree.num_classes,
            ignore=IGNORE,
            radius_px=self.config.boundary_px,
        )
        rows.append(_sparse(BOUNDARIES, torch.stack(boundaries, dim=1)))
        table = np.concatenate(rows)
        return np.column_stack([np.full(len(table), float(position)), table])


def predicted_ids(
    predictions: LogitMaps,
    row: int,
    batch: Batch,
    size_hw: tuple[int, int],
    *,
    tree: ClassTree,
    config: SegmentationTask,
) -> Tensor:
    """The class and the groups of every pixel of an image of a batch: int16 [L, H, W] (see `class_tree.decode`).

    Args:
        size_hw: size of the image in its source.
    """
    stripes = source_stripes(
        predictions.logits_BNHW[row],
        canvas_hw=batch.canvas_hw,
        valid_hw=_hw(batch.valid_hw, row),
        source_hw=size_hw,
    )
    parts = [
        decode(x_1NHW, tree, decoding=config.decoding, back_off=config.back_off)[0] for x_1NHW in stripes
    ]
    return torch.cat(parts, dim=1)


def _sparse(table: int, counts: Tensor) -> NDArray[np.float64]:
    """The rows of a table [truth, predicted], without its zeros and without a position: [N, 4]."""
    dense = counts.cpu().numpy()
    truth, predicted = np.nonzero(dense)
    return np.column_stack([np.full(len(truth), table), truth, predicted, dense[truth, predicted]]).astype(
        float
    )


def _mask(source: Source, index: int) -> Tensor:
    """The true ids of an image, 0..K-1 or IGNORE: [H, W]."""
    return mask_of(source.targets(index)[0], source.image_ids[index]).labelled()


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _hw(sizes: Tensor, row: int) -> tuple[int, int]:
    return int(sizes[row, 0]), int(sizes[row, 1])
