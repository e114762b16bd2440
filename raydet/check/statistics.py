"""Values of every modality and channel: dead, constant, saturated, not finite; means and deviations of the set.

Legend: C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.check.findings import Finding
from raydet.structures import Sample

SATURATED_SHARE = 0.5
"""Share of a channel's pixels at full scale from which an image counts as saturated."""
FLOAT_SLACK = 1e-6

Floats = NDArray[np.float64]


@dataclass(slots=True)
class ChannelSums:
    """Sums over the pixels of one or many images, per channel [C], on a 0..1 scale, of finite values."""

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
    """Images in which the channel holds one value."""
    images: int = 1

    @property
    def num_channels(self) -> int:
        """Channels of the modality."""
        return len(self.count_C)

    def add(self, other: ChannelSums) -> None:
        """Take in the pixels of more images."""
        for name in ("count_C", "sum_C", "squares_C", "zeros_C", "full_C", "constant_C"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low_C = np.minimum(self.low_C, other.low_C)
        self.high_C = np.maximum(self.high_C, other.high_C)
        self.is_grey &= other.is_grey
        self.images += other.images

    def rows(self) -> list[dict[str, Any]]:
        """One per channel: mean, std, min, max on a 0..1 scale, shares of pixels at 0 and at full scale."""
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
    """Of one image.

    Args:
        x_CHW: uint8 in 0..255 or float in 0..1.
    """
    if x_CHW.dtype == torch.uint8:
        return _of_bytes(x_CHW)
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


def _of_bytes(x_CHW: Tensor) -> ChannelSums:
    """The same from the histogram, which is exact."""
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
    """What is wrong with the values of one image."""
    for name, sum_ in sums.items():
        x_CHW = sample.modalities[name]
        num_pixels = x_CHW.shape[1] * x_CHW.shape[2]
        bad = int(x_CHW.numel() - sum_.count_C.sum())
        if bad:
            yield Finding(
                "not_finite",
                sample.image_id,
                f"{name}: {bad} of {x_CHW.numel()} values",
                index,
                badness=float(bad),
            )
        low, high = float(sum_.low_C.min()), float(sum_.high_C.max())
        if not bad and not (low >= -FLOAT_SLACK and high <= 1 + FLOAT_SLACK):
            yield Finding("out_of_range", sample.image_id, f"{name}: {low:g}..{high:g}", index, badness=high)
        if (sum_.constant_C > 0).all():
            is_quiet = name == "event" and high == 0
            kind = "no_events" if is_quiet else "constant"
            yield Finding(kind, sample.image_id, f"{name}: every pixel is {low:.3g} of full scale", index)
        elif float(sum_.full_C.min()) >= SATURATED_SHARE * num_pixels:
            share = float(sum_.full_C.min()) / num_pixels
            yield Finding(
                "saturated",
                sample.image_id,
                f"{name}: {share:.0%} of the pixels at full scale",
                index,
                badness=share,
            )


def set_findings(sums: dict[str, ChannelSums]) -> Iterator[Finding]:
    """What is wrong with a channel in all images together."""
    for name, sum_ in sums.items():
        for channel in range(sum_.num_channels):
            if sum_.low_C[channel] == sum_.high_C[channel]:
                value = float(sum_.low_C[channel])
                yield Finding(
                    "dead_channel",
                    f"{name} {channel}",
                    f"{value:.3g} of full scale in all {sum_.images} images",
                )
        is_alive = bool((sum_.low_C < sum_.high_C).all())
        if sum_.num_channels == 3 and sum_.is_grey and is_alive:
            yield Finding("grey_rgb", name, f"all three channels are equal in all {sum_.images} images")
