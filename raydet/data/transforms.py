"""From source pixels to the fixed canvas: letterbox, scale jitter, flip. Modalities and boxes move together.

Every picture is resampled at most once. What is random depends on (seed, epoch, image id) alone, so a picture is
augmented alike on every number of workers.
"""

from __future__ import annotations

from raydet.config import Augmentation
from raydet.data.geometry import cut, drop_small_boxes, flip_horizontally, letterboxed_hw, pad, resize
from raydet.data.randomness import random_stream
from raydet.structures import Sample


def train_transform(
    sample: Sample, *, augmentation: Augmentation, canvas_hw: tuple[int, int], seed: int, epoch: int
) -> Sample:
    """The sample on the canvas, augmented; boxes that became too small are dropped."""
    stream = random_stream(seed, epoch, sample.image_id)
    # All draws come first and always: switching one change off leaves the others as they are.
    flip, scale, down, right = stream.random_sample(4)
    low, high = augmentation.scale_jitter
    sample = resize(sample, letterboxed_hw(sample.source_hw, canvas_hw, factor=low + (high - low) * scale))
    sample = _cut_to(sample, canvas_hw, down=down, right=right)
    if flip < augmentation.flip_probability:
        sample = flip_horizontally(sample)
    return pad(drop_small_boxes(sample, augmentation.min_box_px), canvas_hw)


def eval_transform(sample: Sample, *, canvas_hw: tuple[int, int]) -> Sample:
    """The sample on the canvas, as large as it fits, at the top left."""
    return pad(resize(sample, letterboxed_hw(sample.source_hw, canvas_hw)), canvas_hw)


def _cut_to(sample: Sample, canvas_hw: tuple[int, int], *, down: float, right: float) -> Sample:
    """The part of an unpadded sample that fits the canvas, at a place given by two numbers in 0..1."""
    height, width = sample.canvas_hw
    kept_h, kept_w = min(height, canvas_hw[0]), min(width, canvas_hw[1])
    top, left = int(down * (height - kept_h + 1)), int(right * (width - kept_w + 1))
    return cut(sample, top=top, left=left, size_hw=(kept_h, kept_w))
