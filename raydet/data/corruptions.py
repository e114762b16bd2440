"""Corruptions of an image in five severities: noise, blur, dead rows, a shifted sensor.

Pure functions of the image, the kind, the severity and a key. The draws do not depend on the severity: pixels that are
corrupted at severity 1 are corrupted at 2 as well, so a curve over severities has no sampling noise.

Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, arXiv 1903.12261: noise, blur, contrast
and glare (there brightness) are as strong as there. The others are our own.

Legend: C channels, H W height and width.
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raydet.data.geometry import shifted
from raydet.data.randomness import Key, random_stream

Kind = Literal[
    "noise",
    "blur",
    "contrast",
    "dark",
    "glare",
    "dead_rows",
    "dropped_blocks",
    "event_loss",
    "event_noise",
    "shift",
]

STRENGTHS: dict[Kind, tuple[float, float, float, float, float]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation of Gaussian noise, on a 0..1 scale
    "blur": (1.0, 2.0, 3.0, 4.0, 6.0),  # standard deviation of the Gaussian, source pixels
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # factor on the distance from the channel's mean
    "dark": (0.6, 0.4, 0.25, 0.12, 0.05),  # factor
    "glare": (0.1, 0.2, 0.3, 0.4, 0.5),  # added, on a 0..1 scale
    "dead_rows": (0.05, 0.1, 0.2, 0.35, 0.5),  # share of the rows that read 0
    "dropped_blocks": (0.1, 0.2, 0.3, 0.45, 0.6),  # share of the blocks that read 0
    "event_loss": (0.2, 0.4, 0.6, 0.8, 0.95),  # share of the pixels whose events are lost
    "event_noise": (0.01, 0.03, 0.06, 0.12, 0.24),  # share of the pixels that fire by themselves
    "shift": (1.0, 2.0, 4.0, 8.0, 16.0),  # source pixels, up, down, left or right
}
NUM_SEVERITIES = 5
BLOCKS_PER_SIDE = 8
"""Number of (square) blocks along the shorter side of the image."""

KINDS: dict[str, tuple[Kind, ...]] = {
    "rgb": ("noise", "blur", "contrast", "dark", "glare", "dropped_blocks"),
    "thermal": ("noise", "blur", "contrast", "dead_rows", "dropped_blocks"),
    "event": ("event_loss", "event_noise", "dropped_blocks"),
}
"""Corruptions of each modality's own sensor. A shift is relative to a second sensor, and so is not among them."""


def corrupted(x_CHW: Tensor, kind: Kind, *, severity: int, key: tuple[Key, ...]) -> Tensor:
    """The corrupted image, of the same type and shape.

    Args:
        x_CHW: uint8 in 0..255 or float32 in 0..1, without padding.
        severity: 0 (unchanged) to `NUM_SEVERITIES`; see `STRENGTHS`.
        key: of the random draws, such as (seed, image id).

    >>> image = torch.full((1, 4, 4), 200, dtype=torch.uint8)
    >>> corrupted(image, "dark", severity=2, key=(0,)).unique().tolist()
    [80]
    """
    if severity == 0:
        return x_CHW
    stream = random_stream(*key, kind)
    is_uint8 = x_CHW.dtype == torch.uint8
    unit_CHW = x_CHW.float() / 255 if is_uint8 else x_CHW
    changed = _changed(unit_CHW, kind, STRENGTHS[kind][severity - 1], stream).clamp(0, 1)
    return (changed * 255).round().to(torch.uint8) if is_uint8 else changed


def _changed(x_CHW: Tensor, kind: Kind, strength: float, stream: np.random.RandomState) -> Tensor:
    match kind:
        case "noise":
            draws = stream.standard_normal(tuple(x_CHW.shape))
            return x_CHW + strength * torch.from_numpy(draws).float()
        case "blur":
            return _blurred(x_CHW, strength)
        case "contrast":
            mean_C11 = x_CHW.mean(dim=(1, 2), keepdim=True)
            return mean_C11 + strength * (x_CHW - mean_C11)
        case "dark":
            return x_CHW * strength
        case "glare":
            return x_CHW + strength
        case "dead_rows":
            return x_CHW * _survivors(x_CHW.shape[1], strength, stream)[:, None]
        case "dropped_blocks":
            return x_CHW * _surviving_blocks(x_CHW, strength, stream)
        case "event_loss":
            return x_CHW * (_uniform(x_CHW, stream) >= strength)
        case "event_noise":
            fires_HW, value_HW = _uniform(x_CHW, stream) < strength, _uniform(x_CHW, stream)
            return torch.where(fires_HW, torch.maximum(x_CHW, value_HW), x_CHW)
        case "shift":
            direction, step = stream.randint(4), int(strength)
            down, right = [(step, 0), (-step, 0), (0, step), (0, -step)][direction]
            # The median adds neither edges that the sensor would not see, nor streaks of events.
            return shifted(x_CHW, down=down, right=right, fill_C=x_CHW.flatten(1).median(dim=1).values)
        case unreachable:
            assert_never(unreachable)


def _blurred(x_CHW: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a kernel of three standard deviations to either side, and reflected edges."""
    for dim in (1, 2):
        radius = min(math.ceil(3 * sigma), x_CHW.shape[dim] - 1)
        weights = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
        weights = (weights / weights.sum()).view([1, 1, -1, 1] if dim == 1 else [1, 1, 1, -1])
        margins = (0, 0, radius, radius) if dim == 1 else (radius, radius, 0, 0)
        x_CHW = functional.conv2d(functional.pad(x_CHW[:, None], margins, mode="reflect"), weights)[:, 0]
    return x_CHW


def _survivors(count: int, lost: float, stream: np.random.RandomState) -> Tensor:
    """A mask of length `count`: 0 for a share of `lost`, 1 for the others."""
    alive = torch.ones(count)
    alive[stream.permutation(count)[: round(lost * count)]] = 0.0
    return alive


def _surviving_blocks(x_CHW: Tensor, lost: float, stream: np.random.RandomState) -> Tensor:
    """A mask [H, W] in which a share of the blocks is 0."""
    height, width = x_CHW.shape[1:]
    side = max(1, min(height, width) // BLOCKS_PER_SIDE)
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    alive = _survivors(rows * columns, lost, stream).view(rows, columns)
    return alive.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]


def _uniform(x_CHW: Tensor, stream: np.random.RandomState) -> Tensor:
    """Uniform draws in 0..1, [H, W]."""
    return torch.from_numpy(stream.random_sample(tuple(x_CHW.shape[1:]))).float()
