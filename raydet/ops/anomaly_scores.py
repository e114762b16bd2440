"""Anomaly scores of pixels, as functions of a segmentation's logits and features; higher is more anomalous.

- `max_softmax`: A Baseline for Detecting Misclassified and Out-of-Distribution Examples (arXiv 1610.02136).
- `max_logit`: Scaling Out-of-Distribution Detection for Real-World Settings (arXiv 1911.11132), StreetHazards' own.
- `energy`: Energy-based Out-of-distribution Detection (arXiv 2010.03759).
- `standardised_max_logit`: Standardized Max Logits (Jung et al., ICCV 2021, arXiv 2107.11264), with its boundary
  suppression and its dilated smoothing; implemented from the paper.
- `mahalanobis`: A Simple Unified Framework for Detecting Out-of-Distribution Samples (arXiv 1807.03888), per pixel.
- `heat`: a published StreetHazards comparison's sum of energy, Mahalanobis distance and disagreement with the
  neighbours; `SeedHeat` is the form in which that comparison evaluated it.

Everything is computed in fp32, or in fp64 for fp64 inputs. Autocast would lower the precision of the matrix product in
`mahalanobis` and of the convolution in `smooth`; callers leave it before.

Legend: B batch, K classes, C channels, H W logits, h w features or distances, N pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, max_pool2d, pad

from raydet.errors import DataError

BOUNDARY_WIDTHS_PX = (8, 6, 4, 2)
"""The paper's: four iterations, from 8 px on, 2 px less each."""
KERNEL_SIZE, KERNEL_DILATION, KERNEL_SIGMA = 7, 6, 1.0
"""The paper's smoothing kernel; sigma in cells of the kernel, that is 6 px."""
CHUNK_NUMBERS = 1 << 22
"""Bounds the memory of `mahalanobis`: a chunk of pixels has about this many features, 16 MiB in fp32."""
STD_EPSILON = 1e-8
HEAT_EPSILON = 1e-6
SEED_ALPHA = 0.9


def max_softmax(logits_BKHW: Tensor) -> Tensor:
    """Minus the largest probability: [B, H, W], in -1..-1/K.

    >>> max_softmax(torch.zeros(1, 4, 1, 1)).item()
    -0.25
    """
    return -_at_least_fp32(logits_BKHW).softmax(dim=1).amax(dim=1)


def max_logit(logits_BKHW: Tensor) -> Tensor:
    """Minus the largest logit: [B, H, W]."""
    return -_at_least_fp32(logits_BKHW).amax(dim=1)


def energy(logits_BKHW: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-T log sum exp(z / T): [B, H, W], at most `max_logit`, and by T log K at most below it."""
    return -temperature * (_at_least_fp32(logits_BKHW) / temperature).logsumexp(dim=1)


def entropy(logits_BKHW: Tensor) -> Tensor:
    """Entropy of the probabilities in nats: [B, H, W], in 0..log K."""
    return torch.special.entr(_at_least_fp32(logits_BKHW).softmax(dim=1)).sum(dim=1)


def standardised_max_logit(
    logits_BKHW: Tensor,
    mean_K: Tensor,
    std_K: Tensor,
    *,
    boundary_widths_px: Sequence[int] = (),
    smoothing: bool = False,
) -> Tensor:
    """How many standard deviations the largest logit is below its mean for the predicted class: [B, H, W].

    Args:
        mean_K: mean of the largest logit over the pixels of a calibration split that are predicted as the class.
        std_K: its population standard deviation (see `raydet.ops.class_moments.ClassMoments`).
        boundary_widths_px: see `suppress_boundaries`; the paper's are BOUNDARY_WIDTHS_PX, none: the plain score.
        smoothing: whether `smooth` is applied at the end.
    """
    logits_BKHW = _at_least_fp32(logits_BKHW)
    best_BHW, class_BHW = logits_BKHW.max(dim=1)
    mean_BHW, std_BHW = (x_K.to(best_BHW)[class_BHW] for x_K in (mean_K, std_K))
    scores_BHW = (mean_BHW - best_BHW) / (std_BHW + STD_EPSILON)
    if boundary_widths_px:
        scores_BHW = suppress_boundaries(scores_BHW, class_BHW, boundary_widths_px)
    return smooth(scores_BHW) if smoothing else scores_BHW


def suppress_boundaries(
    scores_BHW: Tensor, class_BHW: Tensor, widths_px: Sequence[int] = BOUNDARY_WIDTHS_PX
) -> Tensor:
    """Replace the scores near boundaries between predicted classes, from the outside to the inside: [B, H, W].

    For one width after the other: a pixel that has another class at most that far away (|dy| + |dx|) gets the mean
    score of the pixels without one in its 3 x 3 neighbourhood, or keeps its own if there are none. With the paper's
    widths a ring of two pixels is released per iteration while the mean reaches one pixel, so that every second ring
    keeps its own scores until they are averaged; widths of (8, 7, ..., 1) replace all.

    Args:
        class_BHW: predicted classes.
        widths_px: 1 or more each, descending.
    """
    distance_BHW = _distance_to_other_class(class_BHW, limit=max(widths_px))
    for width in widths_px:
        is_inner_BHW = distance_BHW > width
        inner_BHW = scores_BHW.where(is_inner_BHW, 0.0)
        sum_BHW, share_BHW = (
            avg_pool2d(x_BHW[:, None], kernel_size=3, stride=1, padding=1)[:, 0]
            for x_BHW in (inner_BHW, is_inner_BHW.to(scores_BHW))
        )
        is_replaced_BHW = ~is_inner_BHW & (share_BHW > 0)
        scores_BHW = (sum_BHW / share_BHW).where(is_replaced_BHW, scores_BHW)
    return scores_BHW


def smooth(scores_BHW: Tensor) -> Tensor:
    """The paper's dilated Gaussian smoothing: [B, H, W].

    The paper does not say what is beyond the image's edge; here the edge's own scores continue, so that a constant map
    stays as it is.
    """
    at = torch.arange(KERNEL_SIZE, dtype=torch.float64) - KERNEL_SIZE // 2
    kernel = torch.exp(-(at**2) / (2 * KERNEL_SIGMA**2))
    kernel = (kernel / kernel.sum()).to(scores_BHW)
    margin = KERNEL_SIZE // 2 * KERNEL_DILATION
    padded_B1HW = pad(scores_BHW[:, None], (margin, margin, margin, margin), mode="replicate")
    # The kernel is separable: 14 products per pixel instead of 49.
    rows_B1HW = conv2d(padded_B1HW, kernel.view(1, 1, -1, 1), dilation=(KERNEL_DILATION, 1))
    return conv2d(rows_B1HW, kernel.view(1, 1, 1, -1), dilation=(1, KERNEL_DILATION))[:, 0]


def mahalanobis(
    features_BChw: Tensor, mean_KC: Tensor, precision_CC: Tensor, *, is_known_K: Tensor | None = None
) -> Tensor:
    """Mahalanobis distance to the nearest class mean, sqrt(d^2 + 1e-8): [B, h, w].

    Args:
        mean_KC: mean features by class.
        precision_CC: inverse of the covariance that the classes share (see
            `raydet.ops.class_moments.FeatureMoments`).
        is_known_K: the classes that have a mean; None: all.

    Raises:
        DataError: no class has a mean, or the precision matrix is not positive definite.
    """
    features_BChw = _at_least_fp32(features_BChw)
    mean_KC = mean_KC if is_known_K is None else mean_KC[is_known_K]
    if not len(mean_KC):
        raise DataError(
            "expected the mean features of one class at least, got none; calibrate on images with labelled pixels"
        )
    factor_CC, failure = torch.linalg.cholesky_ex(precision_CC.double())  # precision = factor @ factor.T
    if failure:
        raise DataError(
            "expected a positive definite precision matrix, got one that is not; calibrate on more pixels"
        )
    # Distances do not change with the origin; near the means, less is lost to rounding.
    origin_C = mean_KC.double().mean(dim=0)
    white_KC = ((mean_KC.double() - origin_C) @ factor_CC).to(features_BChw)
    origin_C, factor_CC = origin_C.to(features_BChw), factor_CC.to(features_BChw)
    distances = []
    for features_CN in features_BChw.flatten(2):
        for chunk_CN in features_CN.split(max(1, CHUNK_NUMBERS // len(features_CN)), dim=1):
            white_NC = (chunk_CN - origin_C[:, None]).T @ factor_CC
            distances.append(
                torch.cdist(white_NC, white_KC, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
            )
    batch, _, height, width = features_BChw.shape
    return (torch.cat(distances).square() + 1e-8).sqrt().reshape(batch, height, width)


def spatial_kl(probabilities_BKHW: Tensor, *, count_include_pad: bool = False) -> Tensor:
    """KL divergence of the probabilities from their mean over the 3 x 3 neighbourhood: [B, H, W], about 0 or more.

    Args:
        probabilities_BKHW: they sum to 1 over the classes.
        count_include_pad: take the mean at the image's edge over nine pixels, those outside being zero, as
            `SeedHeat` does: it makes the edge anomalous.
    """
    mean_BKHW = avg_pool2d(
        probabilities_BKHW, kernel_size=3, stride=1, padding=1, count_include_pad=count_include_pad
    )
    ratio_BKHW = (probabilities_BKHW + 1e-8) / (mean_BKHW + 1e-8)
    return (probabilities_BKHW * ratio_BKHW.log()).sum(dim=1)


def heat(logits_BKHW: Tensor, distances_Bhw: Tensor, *, mean: float, std: float) -> Tensor:
    """HEAT with a fixed normalisation: [B, H, W]; a function of the image alone, whatever is in its batch.

    The weighted mean of the energy, the Mahalanobis distance and `spatial_kl`, with the weights 1 / entropy, 1 and
    1 / (variance of the probabilities over the classes, averaged over the 3 x 3 neighbourhood).

    Args:
        distances_Bhw: from `mahalanobis`; resized to the logits (bilinear).
        mean: of the score on a calibration split, that is of what this function gives with mean 0 and std 1.
        std: of the same; above 0.
    """
    return (_weighted_terms(logits_BKHW, distances_Bhw, count_include_pad=False) - mean) / std


class SeedHeat:
    """HEAT as the published comparison evaluated it. **Its scores depend on the order and the size of the batches.**

    Scores are normalised with moving averages of the batches' means and standard deviations, which each batch changes
    before it is normalised; the first batch sets them. So a pixel's score depends on all images before its own, and a
    ranking of pixels of several batches is not one of the pixels by themselves. For comparisons use `heat`.

    Departures from the comparison's code: the entropy has no 1e-8 inside its logarithm, and `mahalanobis` skips the
    classes without a mean, not the last one in their place.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.std: Tensor | None = None

    def __call__(self, logits_BKHW: Tensor, distances_Bhw: Tensor) -> Tensor:
        """Scores of the next batch: [B, H, W]. Arguments as those of `heat`."""
        scores_BHW = _weighted_terms(logits_BKHW, distances_Bhw, count_include_pad=True)
        mean, std = scores_BHW.mean(), scores_BHW.std()
        if self.mean is not None and self.std is not None:
            mean = SEED_ALPHA * self.mean + (1 - SEED_ALPHA) * mean
            std = SEED_ALPHA * self.std + (1 - SEED_ALPHA) * std
        self.mean, self.std = mean, std
        return (scores_BHW - mean) / (std + HEAT_EPSILON)


def _weighted_terms(logits_BKHW: Tensor, distances_Bhw: Tensor, *, count_include_pad: bool) -> Tensor:
    """The weighted mean of HEAT's three terms: [B, H, W]."""
    logits_BKHW = _at_least_fp32(logits_BKHW)
    size = (logits_BKHW.shape[2], logits_BKHW.shape[3])
    distances_BHW = interpolate(
        distances_Bhw[:, None].to(logits_BKHW), size=size, mode="bilinear", align_corners=False
    )[:, 0]
    probabilities_BKHW = logits_BKHW.softmax(dim=1)
    variance_BHW = avg_pool2d(
        (probabilities_BKHW - probabilities_BKHW.mean(dim=1, keepdim=True)).square().sum(dim=1, keepdim=True),
        kernel_size=3,
        stride=1,
        padding=1,
        count_include_pad=count_include_pad,
    )[:, 0]
    of_energy_BHW = 1 / (entropy(logits_BKHW) + HEAT_EPSILON)
    of_kl_BHW = 1 / (variance_BHW + HEAT_EPSILON)
    kl_BHW = spatial_kl(probabilities_BKHW, count_include_pad=count_include_pad)
    total_BHW = of_energy_BHW * energy(logits_BKHW) + distances_BHW + of_kl_BHW * kl_BHW
    return total_BHW / (of_energy_BHW + 1 + of_kl_BHW)


def _distance_to_other_class(class_BHW: Tensor, *, limit: int) -> Tensor:
    """|dy| + |dx| from each pixel to the nearest one of another class: fp32 [B, H, W], at most `limit` + 1."""
    class_BHW = class_BHW.float()
    is_edge_BHW = (_cross_max(class_BHW) != class_BHW) | (_cross_max(-class_BHW) != -class_BHW)
    distance_BHW = torch.full_like(class_BHW, limit + 1).where(~is_edge_BHW, 1.0)
    for _ in range(limit - 1):
        distance_BHW = distance_BHW.minimum(1 - _cross_max(-distance_BHW))
    return distance_BHW


def _cross_max(x_BHW: Tensor) -> Tensor:
    """The largest of a pixel and its four neighbours: [B, H, W]."""
    x_B1HW = x_BHW[:, None]
    column_B1HW = max_pool2d(x_B1HW, kernel_size=(3, 1), stride=1, padding=(1, 0))
    return column_B1HW.maximum(max_pool2d(x_B1HW, kernel_size=(1, 3), stride=1, padding=(0, 1)))[:, 0]


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
