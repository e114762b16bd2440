"""Scores of the pixels of every image, counted: what metrics of anomaly maps are computed from, for any weights of the
images.

Per image there are the numbers of normal and of anomalous pixels by float16 score, zeros left out (a few thousand
scores, 14 bytes each), and the image's own metrics in the precision of its scores. With every image weighted 1, pooled
metrics are those of all pixels; weighted by how often a bootstrap has drawn each image, they are those of the resampled
set.

Legend: I images, B weightings, N counted scores of images, V distinct scores of all images, M metrics of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raydet.metrics.anomaly import (
    NUM_CODES,
    ScoreHistogram,
    Scores,
    auroc,
    average_precision,
    fpr_at_tpr,
    image_metrics,
)
from raydet.metrics.names import (
    AP,
    AUROC,
    FPR95,
    OFFICIAL_FPR95,
    PER_IMAGE_AP,
    PER_IMAGE_AUROC,
    PER_IMAGE_FPR95,
)

Floats = NDArray[np.float64]

ROW_WIDTH = 4
"""Columns: position of the image, code of the score (see `raydet.metrics.anomaly`), normal pixels, anomalous pixels.
Codes below 0 are the image's own metrics: -1 the first of IMAGE_METRICS and so on, with the value in the third column
and 0 in the fourth."""
POOLED = {AUROC: auroc, AP: average_precision, FPR95: fpr_at_tpr}
IMAGE_METRICS = (PER_IMAGE_AUROC, PER_IMAGE_AP, PER_IMAGE_FPR95, OFFICIAL_FPR95)
"""In the order of `ImageMetrics`."""


def image_rows(position: int, scores: Scores, is_anomalous: NDArray[np.bool_]) -> Floats:
    """The rows of one image: [N, ROW_WIDTH].

    Args:
        position: of the image, 0..I-1.
        scores: of its pixels, of any shape. Ignored pixels must be left out.
        is_anomalous: of the same shape.

    Raises:
        DataError: a score is NaN.
    """
    histogram = ScoreHistogram.of(scores, is_anomalous)
    codes_N = np.flatnonzero(histogram.normal_V + histogram.anomalous_V)
    own_M = np.array(image_metrics(scores, is_anomalous))
    third = np.concatenate([own_M, histogram.normal_V[codes_N]])
    fourth = np.concatenate([np.zeros(len(own_M)), histogram.anomalous_V[codes_N]])
    code = np.concatenate([-1 - np.arange(len(own_M)), codes_N])
    return np.column_stack([np.full(len(code), float(position)), code, third, fourth])


@dataclass(frozen=True, slots=True)
class AnomalyRecords:
    """Counted scores of one evaluation."""

    image_ids: NDArray[np.str_]
    """[I]."""
    group_ids: NDArray[np.str_]
    """[I]: images of one sequence, or of one town, share a group."""
    image_metrics_IM: Floats
    """IMAGE_METRICS; NaN for an image without pixels of both kinds."""
    code_N: NDArray[np.uint16]
    """Ascending."""
    image_index_N: NDArray[np.int32]
    """0..I-1, ascending within a code."""
    normal_N: NDArray[np.int32]
    """Number of pixels."""
    anomalous_N: NDArray[np.int32]
    """Number of pixels."""

    @classmethod
    def of_rows(cls, rows: Floats, *, image_ids: NDArray[np.str_], group_ids: NDArray[np.str_]) -> Self:
        """Records of the rows [N, ROW_WIDTH] of all images, in any order; images may lack rows."""
        is_metric = rows[:, 1] < 0
        position, column = rows[is_metric, :2].astype(np.int64).T
        image_metrics_IM = np.full((len(image_ids), len(IMAGE_METRICS)), np.nan)
        image_metrics_IM[position, -1 - column] = rows[is_metric, 2]
        counts = rows[~is_metric]
        index, code, normal, anomalous = counts[np.lexsort((counts[:, 0], counts[:, 1]))].T
        return cls(
            image_ids,
            group_ids,
            image_metrics_IM,
            code.astype(np.uint16),
            *(column.astype(np.int32) for column in (index, normal, anomalous)),
        )

    @classmethod
    def of_parts(cls, parts: Sequence[Self]) -> Self:
        """Records of the images of all parts (at least one), in their order: rows of a few images at a time take less
        memory than those of all.
        """
        starts = accumulate((len(part.image_ids) for part in parts), initial=0)
        index_N = np.concatenate(
            [part.image_index_N + start for part, start in zip(parts, starts, strict=False)]
        )
        code_N, normal_N, anomalous_N = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("code_N", "normal_N", "anomalous_N")
        )
        by_code_N = np.argsort(code_N, kind="stable")
        return cls(
            np.concatenate([part.image_ids for part in parts]),
            np.concatenate([part.group_ids for part in parts]),
            np.concatenate([part.image_metrics_IM for part in parts]),
            *(column[by_code_N] for column in (code_N, index_N, normal_N, anomalous_N)),
        )

    def scores(self, metric: str, weights_BI: Floats) -> Floats:
        """A metric for each weighting: [B], NaN where it is undefined.

        Raises:
            ValueError: the records do not contain this metric.
        """
        if metric in POOLED:
            return POOLED[metric](*self._weighted_counts(weights_BI))
        if metric not in IMAGE_METRICS:
            raise ValueError(f"anomaly records contain {', '.join((*POOLED, *IMAGE_METRICS))}, not {metric}")
        values_I = self.image_metrics_IM[:, IMAGE_METRICS.index(metric)]
        is_known_I = ~np.isnan(values_I)
        totals_B = weights_BI @ is_known_I
        sums_B = weights_BI @ np.where(is_known_I, values_I, 0.0)
        return np.where(totals_B > 0, sums_B / np.maximum(totals_B, 1e-300), np.nan)

    @property
    def num_mixed(self) -> int:
        """Number of images with pixels of both kinds."""
        return int((~np.isnan(self.image_metrics_IM[:, 0])).sum())

    def histogram(self) -> ScoreHistogram:
        """All pixels of all images: for thresholds and curves."""
        normal_V, anomalous_V = (
            np.bincount(self.code_N, counts_N, minlength=NUM_CODES).astype(np.int64)
            for counts_N in (self.normal_N, self.anomalous_N)
        )
        return ScoreHistogram(normal_V, anomalous_V)

    def is_comparable(self, other: object) -> bool:
        """Whether both are of the same images with as many pixels of each kind, in the same order."""
        return (
            isinstance(other, AnomalyRecords)
            and np.array_equal(self.image_ids, other.image_ids)
            and np.array_equal(self.group_ids, other.group_ids)
            and np.array_equal(self._num_pixels(), other._num_pixels())
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` gave."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})  # type: ignore[arg-type]

    def _num_pixels(self) -> Floats:
        """Normal and anomalous pixels of each image: [2, I]."""
        num_images = len(self.image_ids)
        return np.stack(
            [
                np.bincount(self.image_index_N, counts_N, minlength=num_images)
                for counts_N in (self.normal_N, self.anomalous_N)
            ]
        )

    def _weighted_counts(self, weights_BI: Floats) -> tuple[Floats, Floats]:
        """Normal and anomalous pixels by score, each image's multiplied by its weight: [V, B]."""
        from scipy.sparse import csr_array  # as slow to import as numpy; every run imports this module

        if not len(self.code_N):
            return np.zeros((1, len(weights_BI))), np.zeros((1, len(weights_BI)))
        weights_IB = np.ascontiguousarray(weights_BI.T, np.float64)
        rows_V = np.bincount(self.code_N)
        ends_V = rows_V[rows_V > 0].cumsum()
        weighted = []
        for counts_N in (self.normal_N, self.anomalous_N):
            is_kept_N = counts_N > 0  # few scores of an image have pixels of both kinds
            pointers = np.append(0, is_kept_N.cumsum()[ends_V - 1])
            matrix_VI = csr_array(
                (counts_N[is_kept_N].astype(np.float64), self.image_index_N[is_kept_N], pointers),
                shape=(len(ends_V), len(weights_IB)),
            )
            weighted.append(matrix_VI @ weights_IB)
        normal_VB, anomalous_VB = weighted
        return normal_VB, anomalous_VB
