"""Metrics of anomaly maps, exact, from counts of normal and anomalous pixels by score; higher is more anomalous.

- AUROC: the probability that an anomalous pixel has a higher score than a normal one, equal scores counting half.
- Average precision: the mean precision over the anomalous pixels, each at the threshold of its own score
  (scikit-learn's definition; not the trapezoidal area under the precision-recall curve).
- FPR95: the share of the normal pixels that a threshold calls anomalous when it finds 95 % of the anomalous ones; see
  `fpr_at_tpr` for what published code makes of it where no threshold finds just as many.
- Best F1, and the threshold that has it: one from the same pixels is optimistic, take it from a calibration split.

There are two protocols. *Pooled*: all pixels of all images are one set. *Per image*: the mean over the images that have
pixels of both kinds, as StreetHazards' own evaluation (arXiv 1911.11132) has it. They are not comparable: an image with
few anomalous pixels counts as much as one with many in the second, and in the first one threshold must suit all images.

Pooled metrics are those of the scores in float16: it has 65,536 values, so two counts per value hold any number of
pixels in 1 MiB, and counts of several workers are added up without loss. Metrics of one image are those of its fp32
scores, by one sort. Both equal scikit-learn's on the same scores.

Undefined metrics (no normal, or no anomalous pixels) are NaN.

Legend: N pixels, V distinct scores in ascending order, B weightings of the images, P points of a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Self, assert_never

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scores = NDArray[np.floating]
FprRule = Literal["first", "nearest", "official"]

NUM_CODES = 1 << 16
"""A code is the position of a float16 value among all of them in ascending order."""
_BITS_V = np.concatenate([np.arange(0xFFFF, 0x7FFF, -1, dtype=np.uint16), np.arange(0x8000, dtype=np.uint16)])
"""The bits of each code: the negative values from the largest amount down, then the positive ones."""
CODE_VALUES_V = _BITS_V.view(np.float16).astype(np.float64)
"""The value of each code; NaN at both ends."""
_ZERO = NUM_CODES // 2
"""Code of 0; the one below is that of -0, and never counted."""
CHUNK_PIXELS = 1 << 20
"""Bounds the memory of counting to about 16 MiB."""


class BestF1(NamedTuple):
    """The largest F1 of all thresholds."""

    f1: float
    threshold: float
    """Scores from here on are called anomalous; the highest threshold with this F1."""


class AtThreshold(NamedTuple):
    """What one threshold reaches; NaN where it is undefined."""

    precision: float
    recall: float
    f1: float
    false_positive_rate: float


class Curve(NamedTuple):
    """ROC and precision-recall curve: a point for every distinct score as the threshold, in descending order."""

    thresholds_P: Floats
    """Scores from here on are called anomalous."""
    false_positive_rate_P: Floats
    recall_P: Floats
    """The true positive rate."""
    precision_P: Floats


class ImageMetrics(NamedTuple):
    """Metrics of one image's pixels; NaN without pixels of both kinds."""

    auroc: float
    average_precision: float
    fpr95: float
    official_fpr95: float


@dataclass(frozen=True, slots=True)
class ScoreHistogram:
    """Number of normal and of anomalous pixels by float16 score.

    >>> scores, is_anomalous = np.array([0.1, 0.2, 0.9, 0.8]), np.array([False, True, True, False])
    >>> histogram = ScoreHistogram.of(scores, is_anomalous)
    >>> histogram.auroc(), histogram.fpr95()
    (0.75, 0.5)
    """

    normal_V: Ints
    """[NUM_CODES]."""
    anomalous_V: Ints
    """[NUM_CODES]."""

    @classmethod
    def empty(cls) -> Self:
        """No pixels."""
        return cls(np.zeros(NUM_CODES, np.int64), np.zeros(NUM_CODES, np.int64))

    @classmethod
    def of(cls, scores: Scores, is_anomalous: NDArray[np.bool_]) -> Self:
        """Count some pixels.

        Args:
            scores: of any shape, rounded to float16; infinities are kept, and scores beyond 65,504 become infinite.
            is_anomalous: of the same shape. Ignored pixels must be left out of both.

        Raises:
            DataError: a score is NaN.
        """
        scores_N, is_anomalous_N = scores.reshape(-1), is_anomalous.reshape(-1)
        counts = np.zeros(2 * NUM_CODES, np.int64)
        for start in range(0, len(scores_N), CHUNK_PIXELS):
            chunk = slice(start, start + CHUNK_PIXELS)
            with np.errstate(over="ignore"):
                halves_N = scores_N[chunk].astype(np.float16, copy=False)
            bins_N = halves_N.view(np.uint16).astype(np.int64)
            bins_N += is_anomalous_N[chunk].astype(np.int64) << 16
            counts += np.bincount(bins_N, minlength=2 * NUM_CODES)
        counts_2V = counts.reshape(2, NUM_CODES)[:, _BITS_V]
        if counts_2V[:, np.isnan(CODE_VALUES_V)].any():
            raise DataError(_nan_message(int(counts_2V[:, np.isnan(CODE_VALUES_V)].sum())))
        counts_2V[:, _ZERO] += counts_2V[:, _ZERO - 1]
        counts_2V[:, _ZERO - 1] = 0
        return cls(*counts_2V)

    def merge(self, other: ScoreHistogram) -> ScoreHistogram:
        """The counts of both sets of pixels."""
        return ScoreHistogram(self.normal_V + other.normal_V, self.anomalous_V + other.anomalous_V)

    def auroc(self) -> float:
        """See the module."""
        return float(auroc(self.normal_V, self.anomalous_V))

    def average_precision(self) -> float:
        """See the module."""
        return float(average_precision(self.normal_V, self.anomalous_V))

    def fpr95(self, rule: FprRule = "first") -> float:
        """See `fpr_at_tpr`."""
        return float(fpr_at_tpr(self.normal_V, self.anomalous_V, rule=rule))

    def best_f1(self) -> BestF1:
        """The best threshold; it is a float16 value, NaN without anomalous pixels."""
        return best_f1(self.normal_V, self.anomalous_V, CODE_VALUES_V)

    def at_threshold(self, threshold: float) -> AtThreshold:
        """What calling the (float16) scores from `threshold` on anomalous reaches."""
        is_called_V = threshold <= CODE_VALUES_V
        false, true = int(self.normal_V[is_called_V].sum()), int(self.anomalous_V[is_called_V].sum())
        num_normal, num_anomalous = int(self.normal_V.sum()), int(self.anomalous_V.sum())
        ratios = ((true, true + false), (true, num_anomalous), (2 * true, true + false + num_anomalous))
        return AtThreshold(
            *(part / whole if whole else np.nan for part, whole in (*ratios, (false, num_normal)))
        )

    def curve(self) -> Curve:
        """All points; rates are NaN without pixels of their kind."""
        is_there_V = self.normal_V + self.anomalous_V > 0
        false_P, true_P = (x[is_there_V][::-1].cumsum() for x in (self.normal_V, self.anomalous_V))
        with np.errstate(invalid="ignore"):
            return Curve(
                CODE_VALUES_V[is_there_V][::-1],
                false_P / self.normal_V.sum(),
                true_P / self.anomalous_V.sum(),
                true_P / (true_P + false_P),
            )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All fields by name, for a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` gave."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})  # type: ignore[arg-type]


def auroc(normal: NDArray[np.number], anomalous: NDArray[np.number]) -> Floats:
    """AUROC of counts by ascending score: [] or [B].

    Args:
        normal: number (or weight) of normal pixels with each score: [V] or [V, B]; zeros are allowed.
        anomalous: of the same shape.
    """
    below = normal.cumsum(axis=0) - normal
    pairs = (anomalous * (below + normal / 2)).sum(axis=0)
    return _ratio(pairs, normal.sum(axis=0) * anomalous.sum(axis=0, dtype=np.float64))


def average_precision(normal: NDArray[np.number], anomalous: NDArray[np.number]) -> Floats:
    """Average precision: [] or [B]. Arguments as those of `auroc`."""
    false, true = _cumulative(normal, anomalous)
    precision = true / np.maximum(true + false, 1e-300)
    num_anomalous = true[-1]
    return np.where(false[-1] > 0, _ratio((anomalous[::-1] * precision).sum(axis=0), num_anomalous), np.nan)


def fpr_at_tpr(
    normal: NDArray[np.number],
    anomalous: NDArray[np.number],
    *,
    level: float = 0.95,
    rule: FprRule = "first",
) -> Floats:
    """The false positive rate at a true positive rate of `level`: [] or [B].

    Args:
        normal, anomalous: as those of `auroc`.
        rule: which threshold, from the highest down. `first`: the first that finds at least `level`; `nearest`: the one
            whose true positive rate is nearest, the first of equal ones; `official`: the nearest one again, but the
            last of equal ones, so that normal pixels between two anomalous scores count, too (StreetHazards' code).
    """
    false, true = _cumulative(normal, anomalous)
    num_normal, num_anomalous = false[-1], true[-1]
    rate = true / np.maximum(num_anomalous, 1e-300)
    distance = np.abs(rate - level)
    match rule:
        case "first":
            chosen = (rate >= level).argmax(axis=0)
        case "nearest":
            chosen = distance.argmin(axis=0)
        case "official":
            distance[1:][rate[:-1] >= 1] = np.inf  # below a threshold that finds everything
            chosen = len(rate) - 1 - distance[::-1].argmin(axis=0)
        case _:
            assert_never(rule)
    found = np.take_along_axis(false, chosen[None], axis=0)[0]
    return np.where(num_anomalous > 0, _ratio(found, num_normal), np.nan)


def best_f1(normal_V: NDArray[np.number], anomalous_V: NDArray[np.number], values_V: Floats) -> BestF1:
    """The best F1 of all thresholds.

    Args:
        values_V: the scores; those without anomalous pixels may be NaN.
    """
    false_V, true_V = _cumulative(normal_V, anomalous_V)
    if true_V[-1] == 0:
        return BestF1(np.nan, np.nan)
    f1_V = 2 * true_V / (true_V + false_V + true_V[-1])
    best = int(f1_V.argmax())
    return BestF1(float(f1_V[best]), float(values_V[::-1][best]))


def counts_by_score(scores: Scores, is_anomalous: NDArray[np.bool_]) -> tuple[Ints, Ints, Scores]:
    """Normal pixels, anomalous pixels and the score, by distinct score in ascending order: [V] each, exact.

    Only scores of anomalous pixels are told apart. Between two of them all normal pixels are counted together, with NaN
    as the score: that leaves the metrics of this module as they are, and takes one sort without an index.

    Args:
        scores: of any shape. Ignored pixels must be left out.
        is_anomalous: of the same shape.

    Raises:
        DataError: a score is NaN.
    """
    normal_N, anomalous_N = np.sort(scores[~is_anomalous]), np.sort(scores[is_anomalous])
    num_nan = int(np.isnan(normal_N).sum() + np.isnan(anomalous_N).sum())
    if num_nan:
        raise DataError(_nan_message(num_nan))
    is_first_N = np.ones(len(anomalous_N), bool)
    is_first_N[1:] = anomalous_N[1:] != anomalous_N[:-1]
    starts_U = np.flatnonzero(is_first_N)
    values_U = anomalous_N[starts_U]
    first_U, last_U = (np.searchsorted(normal_N, values_U, side=side) for side in ("left", "right"))
    normal_V, anomalous_V = np.zeros((2, 2 * len(values_U) + 1), np.int64)
    values_V = np.full(len(normal_V), np.nan, scores.dtype)
    normal_V[0::2] = np.append(first_U, len(normal_N)) - np.insert(last_U, 0, 0)
    normal_V[1::2] = last_U - first_U
    anomalous_V[1::2] = np.diff(starts_U, append=len(anomalous_N))
    values_V[1::2] = values_U
    return normal_V, anomalous_V, values_V


def image_metrics(scores: Scores, is_anomalous: NDArray[np.bool_]) -> ImageMetrics:
    """The metrics of one image, in the precision of its scores. Arguments as those of `counts_by_score`."""
    normal_V, anomalous_V, _ = counts_by_score(scores, is_anomalous)
    return ImageMetrics(
        float(auroc(normal_V, anomalous_V)),
        float(average_precision(normal_V, anomalous_V)),
        float(fpr_at_tpr(normal_V, anomalous_V)),
        float(fpr_at_tpr(normal_V, anomalous_V, rule="official")),
    )


def _cumulative(normal: NDArray[np.number], anomalous: NDArray[np.number]) -> tuple[Floats, Floats]:
    """False and true positives of each score as the threshold, from the highest down."""
    false, true = (x[::-1].cumsum(axis=0, dtype=np.float64) for x in (normal, anomalous))
    return false, true


def _ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> Floats:
    return np.where(whole > 0, part / np.maximum(whole, 1e-300), np.nan)


def _nan_message(count: int) -> str:
    return (
        f"expected anomaly scores, got NaN for {count:,} pixels; check the logits and the score's statistics"
    )
