"""From source pixels to the fixed canvas: letterbox, scale jitter, flip. Modalities and boxes move together.

Every picture is resampled at most once. What is random depends on (seed, epoch, image id) alone, so a picture is
augmented alike on every number of workers.

Legend: C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from raydet.config import Augmentation
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
    sample = resize(sample, _letterboxed_hw(sample.source_hw, canvas_hw, factor=low + (high - low) * scale))
    sample = _crop(sample, canvas_hw, down=down, right=right)
    if flip < augmentation.flip_probability:
        sample = flip_horizontally(sample)
    return _pad(drop_small_boxes(sample, augmentation.min_box_px), canvas_hw)


def eval_transform(sample: Sample, *, canvas_hw: tuple[int, int]) -> Sample:
    """The sample on the canvas, as large as it fits, at the top left."""
    return _pad(resize(sample, _letterboxed_hw(sample.source_hw, canvas_hw)), canvas_hw)


def resize(sample: Sample, size_hw: tuple[int, int]) -> Sample:
    """An unpadded sample in another size; uint8 stays uint8."""
    height, width = sample.canvas_hw
    if (height, width) == size_hw:
        return sample
    factors = torch.tensor([size_hw[1] / width, size_hw[0] / height] * 2)
    resized = _on_pixels(
        sample,
        lambda x_CHW: functional.interpolate(x_CHW[None], size=size_hw, mode="bilinear", antialias=True)[0],
    )
    # Clipped, because rounding may push an edge out by a millionth.
    return replace(resized, boxes_xyxy=_clipped(sample.boxes_xyxy * factors, size_hw), valid_hw=size_hw)


def flip_horizontally(sample: Sample) -> Sample:
    """Left and right exchanged within the valid part; padding stays where it is."""
    width = sample.valid_hw[1]
    flipped = _on_pixels(
        sample, lambda x_CHW: torch.cat([x_CHW[..., :width].flip(-1), x_CHW[..., width:]], dim=-1)
    )
    x1, y1, x2, y2 = sample.boxes_xyxy.unbind(1)
    return replace(flipped, boxes_xyxy=torch.stack([width - x2, y1, width - x1, y2], dim=1))


def drop_small_boxes(sample: Sample, min_box_px: float) -> Sample:
    """Without the boxes whose shorter side is below `min_box_px`, or is nothing."""
    shorter = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).amin(dim=1)
    keep = (shorter >= min_box_px) & (shorter > 0)
    return sample.with_targets(sample.boxes_xyxy[keep], sample.labels[keep])


def _letterboxed_hw(
    source_hw: tuple[int, int], canvas_hw: tuple[int, int], factor: float = 1.0
) -> tuple[int, int]:
    """Size of the picture when its aspect is kept and, at factor 1, it just fits."""
    scale = factor * min(canvas_hw[0] / source_hw[0], canvas_hw[1] / source_hw[1])
    return max(1, round(source_hw[0] * scale)), max(1, round(source_hw[1] * scale))


def _crop(sample: Sample, canvas_hw: tuple[int, int], *, down: float, right: float) -> Sample:
    """The part of an unpadded sample that fits the canvas, at a place given by two numbers in 0..1."""
    height, width = sample.canvas_hw
    kept_h, kept_w = min(height, canvas_hw[0]), min(width, canvas_hw[1])
    if (kept_h, kept_w) == (height, width):
        return sample
    top, left = int(down * (height - kept_h + 1)), int(right * (width - kept_w + 1))
    boxes_xyxy = sample.boxes_xyxy - torch.tensor([left, top, left, top])
    cropped = _on_pixels(sample, lambda x_CHW: x_CHW[:, top : top + kept_h, left : left + kept_w])
    return replace(cropped, boxes_xyxy=_clipped(boxes_xyxy, (kept_h, kept_w)), valid_hw=(kept_h, kept_w))


def _clipped(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    height, width = size_hw
    return boxes_xyxy.clamp(
        min=boxes_xyxy.new_zeros(4), max=boxes_xyxy.new_tensor([width, height, width, height])
    )


def _pad(sample: Sample, canvas_hw: tuple[int, int]) -> Sample:
    """Zeros to the right and below."""
    height, width = sample.canvas_hw
    margins = (0, canvas_hw[1] - width, 0, canvas_hw[0] - height)
    return _on_pixels(sample, lambda x_CHW: functional.pad(x_CHW, margins)) if any(margins) else sample


def _on_pixels(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    return replace(sample, modalities={name: change(x_CHW) for name, x_CHW in sample.modalities.items()})
