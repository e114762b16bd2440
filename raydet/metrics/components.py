"""Component metrics of anomaly segmentation: whether objects are found, whatever their size.

SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation (Chan et al., NeurIPS 2021, arXiv 2104.14812), section 4;
implemented from the paper. Components are connected over edges and corners (8 neighbours), in the truth and in the
predicted pixels, those whose score reaches a threshold.

- sIoU of a component k of the truth: with the union P of the predicted components that touch k, the pixels in k and P
  over those in k or P, without the pixels of P that are in other components of the truth: one prediction that covers
  two objects is not wrong about either because of the other.
- PPV of a predicted component: the share of its pixels that are in any component of the truth.
- F1 at an overlap t: components of the truth with sIoU above t are found (TP), others missed (FN); predicted ones with
  PPV of at most t are wrong (FP); 2 TP / (2 TP + FN + FP). The paper's mean F1 is over the overlaps OVERLAPS_T.

All three are over the components of all images; undefined ones (no components) are NaN.

Legend: H W image, G components of the truth, P predicted components, T overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

Floats = NDArray[np.float64]

OVERLAPS_T = np.arange(25, 80, 5) / 100
"""0.25, 0.30, ..., 0.75."""


class ComponentOverlaps(NamedTuple):
    """Components of one image."""

    siou_G: Floats
    """In 0..1."""
    ppv_P: Floats
    """In 0..1."""


class ComponentMetrics(NamedTuple):
    """Metrics over all components."""

    mean_siou: float
    mean_ppv: float
    mean_f1: float
    """Over OVERLAPS_T."""
    f1_T: Floats


def component_overlaps(
    is_anomalous_HW: NDArray[np.bool_],
    is_predicted_HW: NDArray[np.bool_],
    *,
    is_ignored_HW: NDArray[np.bool_] | None = None,
    min_predicted_px: int = 1,
) -> ComponentOverlaps:
    """sIoU and PPV of the components of one image.

    Args:
        is_anomalous_HW: the truth.
        is_predicted_HW: the pixels that are called anomalous.
        is_ignored_HW: pixels that are taken out of both before components are formed.
        min_predicted_px: smaller predicted components are dropped.

    >>> truth = np.array([[1, 1, 0, 0, 0, 1]], bool)
    >>> predicted = np.array([[0, 1, 1, 0, 0, 0]], bool)
    >>> component_overlaps(truth, predicted)
    ComponentOverlaps(siou_G=array([0.33333333, 0.        ]), ppv_P=array([0.5]))
    """
    if is_ignored_HW is not None:
        is_anomalous_HW, is_predicted_HW = is_anomalous_HW & ~is_ignored_HW, is_predicted_HW & ~is_ignored_HW
    eight = np.ones((3, 3), bool)
    truth_HW, num_truth = label(is_anomalous_HW, structure=eight)
    predicted_HW, num_predicted = label(is_predicted_HW, structure=eight)
    # Ids start at 1; 0 is the rest of the image.
    area_P = np.bincount(predicted_HW.ravel(), minlength=num_predicted + 1)
    is_kept_P = (area_P >= min_predicted_px) & (np.arange(num_predicted + 1) > 0)
    is_both_HW = is_anomalous_HW & is_kept_P[predicted_HW]
    truth_ids, predicted_ids = truth_HW[is_both_HW], predicted_HW[is_both_HW]
    found_G = np.bincount(truth_ids, minlength=num_truth + 1)
    right_P = np.bincount(predicted_ids, minlength=num_predicted + 1)
    pairs = np.unique(truth_ids.astype(np.int64) * (num_predicted + 1) + predicted_ids)
    touching_G, touching_P = np.divmod(pairs, num_predicted + 1)
    beyond_G = np.bincount(touching_G, (area_P - right_P)[touching_P], minlength=num_truth + 1)
    area_G = np.bincount(truth_HW.ravel(), minlength=num_truth + 1)
    return ComponentOverlaps(
        found_G[1:] / (area_G[1:] + beyond_G[1:]), right_P[is_kept_P] / area_P[is_kept_P]
    )


def component_metrics(images: Sequence[ComponentOverlaps]) -> ComponentMetrics:
    """Metrics over the components of all images.

    >>> component_metrics([ComponentOverlaps(np.array([0.8, 0.1]), np.array([1.0]))]).f1_T[0].item()
    0.6666666666666666
    """
    siou_G = np.concatenate([image.siou_G for image in images])
    ppv_P = np.concatenate([image.ppv_P for image in images])
    found_T = (siou_G[:, None] > OVERLAPS_T).sum(axis=0)
    wrong_T = (ppv_P[:, None] <= OVERLAPS_T).sum(axis=0)
    total_T = found_T + len(siou_G) + wrong_T
    f1_T = np.where(total_T > 0, 2 * found_T / np.maximum(total_T, 1), np.nan)
    mean_siou, mean_ppv = (float(x.mean()) if len(x) else np.nan for x in (siou_G, ppv_P))
    return ComponentMetrics(mean_siou, mean_ppv, float(f1_T.mean()), f1_T)
