"""Geometric transforms: resize, cut, flip, shift, pad. Modalities and boxes are transformed together.

Flip, cut and pad are torchvision's v2 kernels: bit-identical to plain torch, and as fast.

Legend: C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from raydet.structures import Sample


def resize(sample: Sample, size_hw: tuple[int, int]) -> Sample:
    """Resize an unpadded sample; uint8 stays uint8."""
    height, width = sample.canvas_hw
    if (height, width) == size_hw:
        return sample
    factors = torch.tensor([size_hw[1] / width, size_hw[0] / height] * 2)
    # torchvision's resize gives the same bits, and took 7 to 10 % longer on uint8 5 x 512 x 640.
    resized = on_pixels(
        sample, lambda x_CHW: interpolate(x_CHW[None], size=size_hw, mode="bilinear", antialias=True)[0]
    )
    # Clipped, because rounding may push an edge out by a millionth.
    return replace(resized, boxes_xyxy=_clipped(sample.boxes_xyxy * factors, size_hw), valid_hw=size_hw)


def cut(sample: Sample, *, top: int, left: int, size_hw: tuple[int, int]) -> Sample:
    """Crop an unpadded sample; boxes are clipped, and those outside end up with no area."""
    if sample.canvas_hw == size_hw:
        return sample
    boxes_xyxy = sample.boxes_xyxy - torch.tensor([left, top, left, top])
    pixels = on_pixels(sample, lambda x_CHW: functional.crop_image(x_CHW, top, left, *size_hw))
    return replace(pixels, boxes_xyxy=_clipped(boxes_xyxy, size_hw), valid_hw=size_hw)


def flip_horizontally(sample: Sample) -> Sample:
    """Mirror the valid part; padding is unchanged."""
    width = sample.valid_hw[1]
    flipped = on_pixels(
        sample,
        lambda x_CHW: torch.cat(
            [functional.horizontal_flip_image(x_CHW[..., :width]), x_CHW[..., width:]], dim=-1
        ),
    )
    x1, y1, x2, y2 = sample.boxes_xyxy.unbind(1)
    return replace(flipped, boxes_xyxy=torch.stack([width - x2, y1, width - x1, y2], dim=1))


def pad(sample: Sample, canvas_hw: tuple[int, int]) -> Sample:
    """Pad with zeros to the right and below."""
    height, width = sample.canvas_hw
    margins = [0, 0, canvas_hw[1] - width, canvas_hw[0] - height]
    return on_pixels(sample, lambda x_CHW: functional.pad_image(x_CHW, margins)) if any(margins) else sample


def drop_small_boxes(sample: Sample, min_box_px: float) -> Sample:
    """Drop boxes whose shorter side is below `min_box_px`, or zero."""
    shorter = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).amin(dim=1)
    keep = (shorter >= min_box_px) & (shorter > 0)
    return sample.with_targets(sample.boxes_xyxy[keep], sample.labels[keep])


def shifted(x_CHW: Tensor, *, down: int, right: int, fill_C: Tensor) -> Tensor:
    """A copy of an image shifted by whole pixels.

    Args:
        fill_C: value of each channel where nothing is shifted in.
    """
    height, width = x_CHW.shape[1:]
    moved = fill_C[:, None, None].expand_as(x_CHW).clone()
    if abs(down) < height and abs(right) < width:
        rows = slice(max(0, down), height + min(0, down)), slice(max(0, -down), height + min(0, -down))
        columns = slice(max(0, right), width + min(0, right)), slice(max(0, -right), width + min(0, -right))
        moved[:, rows[0], columns[0]] = x_CHW[:, rows[1], columns[1]]
    return moved


def letterboxed_hw(
    source_hw: tuple[int, int], canvas_hw: tuple[int, int], factor: float = 1.0
) -> tuple[int, int]:
    """Size of an image scaled to the canvas with its aspect ratio kept; at factor 1 it just fits."""
    scale = factor * min(canvas_hw[0] / source_hw[0], canvas_hw[1] / source_hw[1])
    return max(1, round(source_hw[0] * scale)), max(1, round(source_hw[1] * scale))


def on_pixels(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    """Apply `change` to every modality; boxes are unchanged."""
    return replace(sample, modalities={name: change(x_CHW) for name, x_CHW in sample.modalities.items()})


def _clipped(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    height, width = size_hw
    return boxes_xyxy.clamp(
        min=boxes_xyxy.new_zeros(4), max=boxes_xyxy.new_tensor([width, height, width, height])
    )
