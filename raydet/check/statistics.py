"""Statistics of every modality and channel, and findings: dead, constant, saturated or not finite values.

Legend: C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.check.findings import Finding
from raydet.structures import Sample

SATURATED_SHARE = 0.5
"""Smallest share of pixels at full scale, in every channel, of a saturated image."""
FLOAT_SLACK = 1e-6

Floats = NDArray[np.float64]


class ChannelRow(TypedDict):
    """Statistics of a channel, on a 0..1 scale; shares are of its pixels."""

    channel: int
    mean: float
    std: float
    min: float | None
    """None: no pixel is finite."""
    max: float | None
    share_zero: float
    share_full: float


@dataclass(slots=True)
class ChannelSums:
    """Sums over the finite pixel values of one or many images, per channel [C], on a 0..1 scale."""

    count_C: Floats
    sum_C: Floats
    squares_C: Floats
    low_C: Floats
    high_C: Floats
    zeros_C: Floats
    full_C: Floats
    is_grey: bool
    """All channels are equal."""
    constant_C: Floats
    """Number of images in which the channel has one value."""
    images: int = 1

    @property
    def num_channels(self) -> int:
        return len(self.count_C)

    def add(self, other: ChannelSums) -> None:
        """Add the pixels of more images."""
        for name in ("count_C", "sum_C", "squares_C", "zeros_C", "full_C", "constant_C"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low_C = np.minimum(self.low_C, other.low_C)
        self.high_C = np.maximum(self.high_C, other.high_C)
        self.is_grey &= other.is_grey
        self.images += other.images

    def rows(self) -> list[ChannelRow]:
        """One row per channel."""
        count_C = np.maximum(self.count_C, 1)
        mean_C = self.sum_C / count_C
        std_C = np.sqrt(np.maximum(self.squares_C / count_C - mean_C**2, 0))
        return [
            {
                "channel": c,
                "mean": round(float(mean_C[c]), 5),
                "std": round(float(std_C[c]), 5),
                "min": round(float(self.low_C[c]), 5) if self.count_C[c] else None,
                "max": round(float(self.high_C[c]), 5) if self.count_C[c] else None,
                "share_zero": round(float(self.zeros_C[c] / count_C[c]), 5),
                "share_full": round(float(self.full_C[c] / count_C[c]), 5),
            }
            for c in range(self.num_channels)
        ]


def channel_sums(x_CHW: Tensor) -> ChannelSums:
    """The sums of one image.

    Args:
        x_CHW: uint8 in 0..255 or float in 0..1.
    """
    if x_CHW.dtype == torch.uint8:
        return _sums_of_uint8(x_CHW)
    flat_CN = x_CHW.flatten(1).double().numpy()
    is_finite = np.isfinite(flat_CN)
    known_CN = np.where(is_finite, flat_CN, 0.0)
    low_C = np.where(is_finite, flat_CN, np.inf).min(axis=1)
    high_C = np.where(is_finite, flat_CN, -np.inf).max(axis=1)
    return ChannelSums(
        count_C=is_finite.sum(axis=1).astype(float),
        sum_C=known_CN.sum(axis=1),
        squares_C=(known_CN**2).sum(axis=1),
        low_C=low_C,
        high_C=high_C,
        zeros_C=(is_finite & (flat_CN == 0)).sum(axis=1).astype(float),
        full_C=(is_finite & (flat_CN >= 1)).sum(axis=1).astype(float),
        is_grey=bool((flat_CN == flat_CN[:1]).all()),
        constant_C=(low_C == high_C).astype(float),
    )


def _sums_of_uint8(x_CHW: Tensor) -> ChannelSums:
    """The sums of a uint8 image, from its exact histogram."""
    flat_CN = x_CHW.flatten(1).numpy()
    counts_CV = np.stack([np.bincount(row, minlength=256) for row in flat_CN])
    levels_V = np.arange(256) / 255
    low_C = (counts_CV > 0).argmax(axis=1) / 255
    high_C = (255 - (counts_CV > 0)[:, ::-1].argmax(axis=1)) / 255
    return ChannelSums(
        count_C=counts_CV.sum(axis=1).astype(float),
        sum_C=counts_CV @ levels_V,
        squares_C=counts_CV @ levels_V**2,
        low_C=low_C,
        high_C=high_C,
        zeros_C=counts_CV[:, 0].astype(float),
        full_C=counts_CV[:, 255].astype(float),
        is_grey=bool((flat_CN == flat_CN[:1]).all()),
        constant_C=(low_C == high_C).astype(float),
    )


def image_findings(sample: Sample, index: int, sums: dict[str, ChannelSums]) -> Iterator[Finding]:
    """Findings about the values of one image."""

    def finding(kind: str, detail: str, badness: float = 0.0) -> Finding:
        return Finding(kind, sample.image_id, detail, index, badness=badness)

    for name, sum_ in sums.items():
        x_CHW = sample.modalities[name]
        num_pixels = x_CHW.shape[1] * x_CHW.shape[2]
        bad = int(x_CHW.numel() - sum_.count_C.sum())
        if bad:
            yield finding("not_finite", f"{name}: {bad} of {x_CHW.numel()} values", float(bad))
        low, high = float(sum_.low_C.min()), float(sum_.high_C.max())
        if not bad and not (low >= -FLOAT_SLACK and high <= 1 + FLOAT_SLACK):
            yield finding("out_of_range", f"{name}: {low:g}..{high:g}", high)
        if (sum_.constant_C > 0).all():
            kind = "no_events" if name == "event" and high == 0 else "constant"
            yield finding(kind, f"{name}: every pixel is {low:.3g} of full scale")
        elif float(sum_.full_C.min()) >= SATURATED_SHARE * num_pixels:
            share = float(sum_.full_C.min()) / num_pixels
            yield finding("saturated", f"{name}: {share:.0%} of the pixels at full scale", share)


def set_findings(sums: dict[str, ChannelSums]) -> Iterator[Finding]:
    """Findings about a channel over all images."""
    for name, sum_ in sums.items():
        for channel, (low, high) in enumerate(zip(sum_.low_C.tolist(), sum_.high_C.tolist(), strict=True)):
            if low == high:
                detail = f"{low:.3g} of full scale in all {sum_.images} images"
                yield Finding("dead_channel", f"{name} {channel}", detail)
        has_no_dead_channel = bool((sum_.low_C < sum_.high_C).all())
        if sum_.num_channels == 3 and sum_.is_grey and has_no_dead_channel:
            yield Finding("grey_rgb", name, f"all three channels are equal in all {sum_.images} images")
