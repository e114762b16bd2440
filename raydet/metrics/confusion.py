"""Confusions of classes, image by image: what segmentation metrics are computed from, for any weights of the images.

A confusion counts the labelled pixels by their true and their predicted class; ignored pixels are in none. A pixel
whose class was left open (`task.back_off`) is wrong on every level on which it was.

- IoU of a class: its right pixels over all that are it or were called it, summed over the images. mIoU is the mean over
  the classes; one that is in neither the truth nor the predictions has no IoU and is left out. The same for the groups
  of a level of the class tree.
- `pixel_accuracy`: right pixels over all; `mean_accuracy`: the mean over the classes of the truth of each one's.
- `per_image_mIoU`: the mean over the images of each one's mIoU; images without a labelled pixel are left out.
- `boundary_F1`: for every class the harmonic mean of two shares, that of its predicted boundary pixels that are near a
  true one and that of its true ones that are near a predicted one (see `raydet.metrics.boundary`), counts summed over
  the images; the mean over the classes that have a boundary in either (after Csurka et al., BMVC 2013, where it is the
  mean over images).
- `tree_distance`: the number of edges from the true class up to the lowest level on which the prediction is right, that
  is to the lowest common ancestor; past the roots, one edge more. The mean over the pixels whose class is wrong,
  undefined without any; `tree_distance_all`: over all pixels, right ones being at 0.
- `violation_rate`: share of the pixels on which the largest outputs of the levels, each taken for itself, contradict
  the class tree, whatever `task.decoding` is; 0 for a model without outputs for groups.

Legend: I images, B weightings, L + 1 levels, K classes or groups of a level, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.names import LEVEL_IOU, PER_CLASS_IOU

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROW_WIDTH = 5
"""Columns: position of the image, table, truth, predicted, number of pixels. Tables from 0 on are the confusions of the
levels; a prediction that was left open has the number of the level's groups as its id."""
DISTANCES = -1
"""Table: the column `truth` is a distance on the tree, `predicted` is 0."""
VIOLATIONS = -2
"""Table: the number of pixels that contradict the tree; `truth` and `predicted` are 0."""
BOUNDARIES = -3
"""Table: `truth` is a class, `predicted` 0..3 one of the fields of `BoundaryCounts`."""


@dataclass(frozen=True, slots=True)
class ConfusionRecords:
    """Confusions of one evaluation."""

    image_ids: NDArray[np.str_]
    """[I]."""
    group_ids: NDArray[np.str_]
    """[I]: images of one sequence share a group."""
    classes: NDArray[np.str_]
    """[K]."""
    levels: NDArray[np.str_]
    """[L]: names of the levels above the classes."""
    sizes: Ints
    """[L + 1]: number of classes, and of groups of each level."""
    image_index_N: Ints
    """0..I-1."""
    table_N: Ints
    """A level, or one of the constants above."""
    truth_N: Ints
    predicted_N: Ints
    count_N: Ints
    """Number of pixels, above 0."""

    @classmethod
    def of_rows(
        cls,
        rows: Floats,
        *,
        image_ids: NDArray[np.str_],
        group_ids: NDArray[np.str_],
        classes: NDArray[np.str_],
        levels: NDArray[np.str_],
        sizes: Ints,
    ) -> Self:
        """Records of the rows [N, ROW_WIDTH] of all images, in any order."""
        columns = rows[np.lexsort(rows.T[::-1])].astype(np.int64).T
        return cls(image_ids, group_ids, classes, levels, sizes, *columns)

    def scores(self, metric: str, weights_BI: Floats) -> Floats:
        """A metric for each weighting: [B], NaN where it is undefined.

        Raises:
            ValueError: the records do not contain this metric.
        """
        match metric:
            case "mIoU":
                return _mean(self._ious(0, weights_BI))
            case "pixel_accuracy":
                right_IK, truth_IK, _ = self._marginals(0)
                return _ratio(weights_BI @ right_IK.sum(axis=1), weights_BI @ truth_IK.sum(axis=1))
            case "mean_accuracy":
                right_IK, truth_IK, _ = self._marginals(0)
                return _mean(_ratio(weights_BI @ right_IK, weights_BI @ truth_IK))
            case "boundary_F1":
                return _mean(self._boundary_f1s(weights_BI))
            case "per_image_mIoU":
                values_I = self.image_ious()
                is_known_I = ~np.isnan(values_I)
                return _ratio(weights_BI @ np.where(is_known_I, values_I, 0.0), weights_BI @ is_known_I)
            case "tree_distance" | "tree_distance_all":
                counts_ID = self._counts(DISTANCES, self.truth_N, len(self.sizes) + 1)
                first = 1 if metric == "tree_distance" else 0
                totals_BD = (weights_BI @ counts_ID)[:, first:]
                return _ratio(totals_BD @ np.arange(first, counts_ID.shape[1]), totals_BD.sum(axis=1))
            case "violation_rate":
                violations_I = self._counts(VIOLATIONS, self.truth_N, 1)[:, 0]
                totals_I = self._marginals(0)[1].sum(axis=1)
                return _ratio(weights_BI @ violations_I, weights_BI @ totals_I)
        levels = {f"{LEVEL_IOU}{name}": level for level, name in enumerate(self.levels, 1)}
        labels = {f"{PER_CLASS_IOU}{name}": label for label, name in enumerate(self.classes)}
        if metric in levels:
            return _mean(self._ious(levels[metric], weights_BI))
        if metric in labels:
            return self._ious(0, weights_BI)[:, labels[metric]]
        raise ValueError(f"confusion records of {len(self.levels)} levels do not contain {metric}")

    def confusion(self) -> Floats:
        """Labelled pixels of all images by true class and prediction: [K, K + 1], the last column those left open."""
        size = int(self.sizes[0])
        mine = self.table_N == 0
        cells = np.bincount(
            self.truth_N[mine] * (size + 1) + self.predicted_N[mine],
            self.count_N[mine],
            minlength=size * (size + 1),
        )
        return cells.reshape(size, size + 1).astype(np.float64, copy=False)

    def image_ious(self) -> Floats:
        """mIoU of each image for itself: [I], NaN without a labelled pixel."""
        right_IK, truth_IK, predicted_IK = self._marginals(0)
        return _mean(_ratio(right_IK, truth_IK + predicted_IK - right_IK))

    def batch_iou(self, batch_size: int) -> float:
        """The mean of the mIoUs of consecutive batches of images; NaN without a labelled pixel."""
        batch_I = np.arange(len(self.image_ids)) // batch_size
        members_BI = np.equal.outer(np.unique(batch_I), batch_I).astype(float)
        return float(_mean(_mean(self._ious(0, members_BI))[None])[0])

    def constant_score(self, metric: str) -> float | None:
        """The best score of an answer that is one class for all pixels; None for other metrics than mIoU and accuracy.

        In mIoU, the share of the most frequent class divided by the number of classes that are there.
        """
        truth_K = self._marginals(0)[1].sum(axis=0)
        num_classes = int((truth_K > 0).sum())
        if num_classes == 0:
            return None
        share = float(truth_K.max() / truth_K.sum())
        scores = {
            "mIoU": share / num_classes,
            "pixel_accuracy": share,
            "mean_accuracy": 1 / num_classes,
        }
        return scores.get(metric)

    def is_comparable(self, other: object) -> bool:
        """Whether both are of the same images with the same classes and as many pixels of each, in the same order."""
        names = ("image_ids", "group_ids", "classes", "levels", "sizes")
        return (
            isinstance(other, ConfusionRecords)
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)
            and all(
                np.array_equal(self._marginals(level)[1], other._marginals(level)[1])
                for level in range(len(self.sizes))
            )
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` gave."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})  # type: ignore[arg-type]

    def _ious(self, level: int, weights_BI: Floats) -> Floats:
        """IoU of every class or group: [B, K], NaN where it is in neither truth nor prediction."""
        right_IK, truth_IK, predicted_IK = self._marginals(level)
        right_BK = weights_BI @ right_IK
        return _ratio(right_BK, weights_BI @ (truth_IK + predicted_IK) - right_BK)

    def _boundary_f1s(self, weights_BI: Floats) -> Floats:
        """F1 of every class: [B, K], NaN where it has no boundary."""
        num_classes = int(self.sizes[0])
        flat = self._counts(BOUNDARIES, self.truth_N * 4 + self.predicted_N, num_classes * 4)
        counts_BK4 = (weights_BI @ flat).reshape(len(weights_BI), num_classes, 4)
        truth, found_truth, predicted, right_predicted = np.moveaxis(counts_BK4, 2, 0)
        recall, precision = (
            right / np.maximum(total, 1e-300)
            for right, total in ((found_truth, truth), (right_predicted, predicted))
        )
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        return np.where(truth + predicted > 0, f1, np.nan)

    def _marginals(self, level: int) -> tuple[Floats, Floats, Floats]:
        """Pixels of every image and class that are right, that are of the class, and that were called it: [I, K]."""
        size = int(self.sizes[level])
        right = np.where(self.truth_N == self.predicted_N, self.truth_N, size)
        right_IK, truth_IK, predicted_IK = (
            self._counts(level, ids, size + 1)[:, :size] for ids in (right, self.truth_N, self.predicted_N)
        )
        return right_IK, truth_IK, predicted_IK

    def _counts(self, table: int, bins_N: Ints, num_bins: int) -> Floats:
        """Pixels of a table by image and bin: [I, num_bins]."""
        mine = self.table_N == table
        shape = (len(self.image_ids), num_bins)
        flat = np.ravel_multi_index((self.image_index_N[mine], bins_N[mine]), shape)
        counts = np.bincount(flat, self.count_N[mine], minlength=shape[0] * shape[1])
        return counts.astype(np.float64, copy=False).reshape(shape)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1e-300), np.nan)


def _mean(values_BK: Floats) -> Floats:
    """The mean of each row without its NaNs: [B], NaN where there are only NaNs."""
    is_known = ~np.isnan(values_BK)
    return _ratio(np.where(is_known, values_BK, 0.0).sum(axis=1), is_known.sum(axis=1).astype(float))
