"""Simulate the events of an event camera between two images, or during a motion of one image.

Each pixel remembers the log intensity at its last event, and fires an event each time the current one differs by its
threshold (ESIM: an Open Event Camera Simulator, CoRL 2018). As in v2e (From Video Frames to Realistic DVS Events, arXiv
2006.07722) the logarithm is linear below 20 of 255, and thresholds vary between pixels.

Departures and limits:

1. A single image is moved as a whole, by at most a pixel at a time: all edges fire, including those of static objects,
   and moving objects do not stand out.
2. Grey values are taken as intensities; gamma, bandwidth, leak and refractory time are not modelled. The noise has no
   rate: a fraction of the pixels fires once.
3. Events are counted over the window, without time stamps.
4. The image's noise moves too: a dark and noisy image fires nearly everywhere, where a camera would be slow and silent.
5. Between pixels the log intensity is interpolated, not the intensity.

All arithmetic is on integers: the same bytes on every machine.

Legend: H W height and width.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.randomness import Key, random_bits, random_stream

Ints = NDArray[np.int32]

UNIT = 2**12
"""Fixed-point scale of the logarithm: the difference for intensities that differ by a factor of e."""
SUBPIXELS = 16
LINEAR_BELOW = 20
FOUR_BYTES_STD = math.sqrt(4 * (256**2 - 1) / 12)


@dataclass(frozen=True, slots=True)
class EventCounts:
    """Events of each pixel within the window, int32 [H, W] each: on where it became brighter, off where darker."""

    on_HW: Ints
    off_HW: Ints


def log_intensity(rgb_CHW: Tensor) -> Ints:
    """Logarithm of the image's grey value (Rec. 601), [H, W] in units of 1 / `UNIT`.

    Args:
        rgb_CHW: uint8 in 0..255 or float32 in 0..1, three channels or one.

    >>> grey = torch.tensor([[[200, 100]]], dtype=torch.uint8)
    >>> bright, dark = log_intensity(grey)[0] / UNIT
    >>> print(round(float(bright - dark), 3))  # ln 2
    0.693
    """
    values = rgb_CHW if rgb_CHW.dtype == torch.uint8 else (rgb_CHW.clamp(0, 1) * 255).round().to(torch.uint8)
    channels = values.numpy().astype(np.int32)
    if len(channels) == 3:
        grey_HW = (299 * channels[0] + 587 * channels[1] + 114 * channels[2] + 500) // 1000
    else:
        grey_HW = channels.sum(axis=0, dtype=np.int32) // len(channels)
    return np.take(_logarithms(), grey_HW)


@functools.lru_cache(maxsize=2)  # computing them takes longer than an image's events
def thresholds(size_hw: tuple[int, int], *, mean: float, sigma: float, seed: int) -> Ints:
    """Change of the log intensity that fires an event, [H, W] in units of 1 / `UNIT`: equal for all images of a camera.

    Args:
        mean, sigma: in units of the natural logarithm; the draw is a sum of four bytes, normal up to 3.4 sigma.
    """
    height, width = size_hw
    words = random_bits(seed, "thresholds").random_raw(height * width // 2 + 1).astype("<u8", copy=False)
    sums_HW = words.view(np.uint8)[: 4 * height * width].reshape(-1, 4).sum(axis=1, dtype=np.int32) - 510
    factor = round(sigma * UNIT / FOUR_BYTES_STD * 2**10)
    drawn = round(mean * UNIT) + (sums_HW.reshape(size_hw) * factor >> 10)
    # Like v2e, keep thresholds away from 0, where a pixel would fire endlessly.
    return np.maximum(drawn, max(1, UNIT // 100)).astype(np.int32)


def events_between(before_HW: Ints, after_HW: Ints, thresholds_HW: Ints) -> EventCounts:
    """Events while the log intensity changes linearly from one image to the other.

    >>> step = np.array([[UNIT]], np.int32)
    >>> events_between(0 * step, step, np.array([[UNIT // 4]], np.int32)).on_HW.tolist()
    [[4]]
    """
    return _fired([before_HW, after_HW], thresholds_HW)


def events_of_motion(log_HW: Ints, shift_yx: tuple[int, int], thresholds_HW: Ints) -> EventCounts:
    """Events while an image moves to its position, in steps of at most a pixel.

    Args:
        shift_yx: the whole motion down and right, in 1 / `SUBPIXELS` pixels. The image is padded with its edge values.
    """
    num_steps = max(1, math.ceil(math.hypot(*shift_yx) / SUBPIXELS))
    shifts = [
        tuple(round(part * (step - num_steps) / num_steps) for part in shift_yx)
        for step in range(num_steps + 1)
    ]
    margin = max(map(abs, shift_yx)) // SUBPIXELS + 2
    padded_HW = np.pad(log_HW, margin, mode="edge")
    frames = [_moved(padded_HW, log_HW.shape, margin, down, right) for down, right in shifts]
    return _fired(frames, thresholds_HW)


def drawn_motion(max_px: float, key: tuple[Key, ...]) -> tuple[int, int]:
    """A random motion down and right in 1 / `SUBPIXELS` pixels: any direction, length from half of `max_px` to all."""
    longest = max(1, round(max_px * SUBPIXELS))
    stream = random_stream(*key, "motion")
    while True:  # more than half of the draws are in the ring
        down, right = (int(draw * (2 * longest + 1)) - longest for draw in stream.random_sample(2))
        if longest**2 <= 4 * (down**2 + right**2) <= 4 * longest**2:
            return down, right


def with_noise(counts: EventCounts, fraction: float, key: tuple[Key, ...]) -> EventCounts:
    """Events with noise: a fraction of the pixels fires once more, on or off with equal probability."""
    if fraction == 0:
        return counts
    size_hw = counts.on_HW.shape
    words = random_bits(*key, "noise").random_raw(math.prod(size_hw) // 2 + 1).astype("<u8", copy=False)
    draws_HW = words.view("<u4")[: math.prod(size_hw)].reshape(size_hw)
    fires_HW = draws_HW < min(round(fraction * 2**32), 2**32 - 1)
    is_up_HW = draws_HW % 2 == 1
    return EventCounts(counts.on_HW + (fires_HW & is_up_HW), counts.off_HW + (fires_HW & ~is_up_HW))


def as_image(counts: EventCounts, full_scale: int) -> Tensor:
    """Events of both polarities as uint8 [1, H, W], clipped at `full_scale` events, which read 255."""
    total_HW = np.minimum(counts.on_HW + counts.off_HW, full_scale) * 255 // full_scale
    return torch.from_numpy(total_HW.astype(np.uint8))[None]


def _fired(frames: list[Ints], thresholds_HW: Ints) -> EventCounts:
    reference, thresholds_N = frames[0].flatten(), thresholds_HW.ravel()  # a copy, and a view
    on, off = np.zeros_like(reference), np.zeros_like(reference)
    for frame_HW in frames[1:]:
        change = frame_HW.ravel() - reference
        # Only where pixels fire, which are few: divisions are the slowest part.
        (where,) = np.nonzero(np.abs(change) >= thresholds_N)
        counts, is_up = np.abs(change[where]) // thresholds_N[where], change[where] > 0
        on[where] += counts * is_up
        off[where] += counts * ~is_up
        reference[where] += np.sign(change[where]) * counts * thresholds_N[where]
    size_hw = frames[0].shape
    return EventCounts(on.reshape(size_hw), off.reshape(size_hw))


def _moved(padded_HW: Ints, size_hw: tuple[int, ...], margin: int, down: int, right: int) -> Ints:
    """The padded image moved down and right, without its margins, linearly interpolated."""
    (skip_y, part_y), (skip_x, part_x) = divmod(-down, SUBPIXELS), divmod(-right, SUBPIXELS)
    top, left = margin + skip_y, margin + skip_x
    window_HW = padded_HW[top : top + size_hw[0] + 1, left : left + size_hw[1] + 1]
    rows_HW = window_HW[:-1] * (SUBPIXELS - part_y) + window_HW[1:] * part_y
    moved: Ints = rows_HW[:, :-1] * (SUBPIXELS - part_x) + rows_HW[:, 1:] * part_x
    return moved >> 8  # two factors of SUBPIXELS


@functools.cache
def _logarithms() -> Ints:
    """The log intensities of the 256 grey values."""
    line = math.log(LINEAR_BELOW) / LINEAR_BELOW
    values = [grey * line if grey <= LINEAR_BELOW else math.log(grey) for grey in range(256)]
    return np.array([round(value * UNIT) for value in values], np.int32)
