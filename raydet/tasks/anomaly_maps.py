"""Anomaly scores of a trained model, by name: maps of an image, given the statistics of a calibration.

Legend: H W source image, h w map.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from raydet.config import AnomalyScore
from raydet.errors import ConfigError
from raydet.ops import anomaly_scores
from raydet.tasks.anomaly_statistics import AnomalyStatistics
from raydet.tasks.pixel_outputs import PixelOutputs


def anomaly_map(name: AnomalyScore, outputs: PixelOutputs, statistics: AnomalyStatistics | None) -> Tensor:
    """A score of every pixel, higher is more anomalous: float32 [H, W], see `raydet.ops.anomaly_scores`.

    Raises:
        ConfigError: the score needs statistics, and there are none.
    """
    logits_1KHW = outputs.logits_1KHW
    match name:
        case "max_softmax":
            return anomaly_scores.max_softmax(logits_1KHW)[0]
        case "max_logit":
            return anomaly_scores.max_logit(logits_1KHW)[0]
        case "energy":
            return anomaly_scores.energy(logits_1KHW)[0]
        case "entropy":
            return anomaly_scores.entropy(logits_1KHW)[0]
        case "standardised_max_logit" | "smoothed_max_logit" | "mahalanobis" | "heat":
            if statistics is None:
                raise ConfigError(f"the score {name} needs a calibration: run raydet calibrate first")
            return _calibrated_map(name, outputs, statistics)
        case unreachable:
            assert_never(unreachable)


def _calibrated_map(name: AnomalyScore, outputs: PixelOutputs, statistics: AnomalyStatistics) -> Tensor:
    logits_1KHW = outputs.logits_1KHW
    if name in ("standardised_max_logit", "smoothed_max_logit"):
        is_refined = name == "smoothed_max_logit"
        return anomaly_scores.standardised_max_logit(
            logits_1KHW,
            torch.from_numpy(statistics.logits.mean_K),
            torch.from_numpy(statistics.logits.std),
            boundary_widths_px=anomaly_scores.BOUNDARY_WIDTHS_PX if is_refined else (),
            smoothing=is_refined,
        )[0]
    distances_hw = anomaly_scores.mahalanobis(
        outputs.features_1Chw,
        torch.from_numpy(statistics.features.mean_KC),
        torch.from_numpy(statistics.precision_CC),
        is_known_K=torch.from_numpy(statistics.features.is_known),
    )[0]
    distances_HW = outputs.at_source_size(distances_hw)
    if name == "mahalanobis":
        return distances_HW
    return anomaly_scores.heat(
        logits_1KHW, distances_HW[None], mean=statistics.heat_mean, std=statistics.heat_std
    )[0]
