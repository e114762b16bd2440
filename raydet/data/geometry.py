"""Geometric transforms: resize, cut, flip, rotate, shift, pad. Modalities and target are transformed together.

Flip, cut and pad are torchvision's v2 kernels: bit-identical to plain torch, and as fast. Masks are resampled to the
nearest pixel centre, which is where boxes and bilinear pixels are, too.

Legend: C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from raydet.structures import IGNORE, Boxes, Mask, Sample, Target, mask_of


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
    target = _changed(
        sample.target,
        # Clipped, because rounding may push an edge out by a millionth.
        boxes=lambda boxes_xyxy: _clipped(boxes_xyxy * factors, size_hw),
        ids=lambda ids_HW: ids_HW[_nearest(height, size_hw[0])][:, _nearest(width, size_hw[1])],
    )
    return replace(resized, target=target, valid_hw=size_hw)


def cut(sample: Sample, *, top: int, left: int, size_hw: tuple[int, int]) -> Sample:
    """Crop an unpadded sample; boxes are clipped, and those outside end up with no area.

    Args:
        top, left, size_hw: a part of the image.
    """
    if sample.canvas_hw == size_hw:
        return sample
    pixels = on_pixels(sample, lambda x_CHW: functional.crop_image(x_CHW, top, left, *size_hw))
    target = _changed(
        sample.target,
        boxes=lambda boxes_xyxy: _clipped(boxes_xyxy - torch.tensor([left, top, left, top]), size_hw),
        ids=lambda ids_HW: functional.crop_image(ids_HW, top, left, *size_hw),
    )
    return replace(pixels, target=target, valid_hw=size_hw)


def flip_horizontally(sample: Sample) -> Sample:
    """Mirror the valid part; padding is unchanged."""
    width = sample.valid_hw[1]

    def flipped(pixels: Tensor) -> Tensor:
        return torch.cat([functional.horizontal_flip_image(pixels[..., :width]), pixels[..., width:]], dim=-1)

    def flipped_boxes(boxes_xyxy: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes_xyxy.unbind(1)
        return torch.stack([width - x2, y1, width - x1, y2], dim=1)

    target = _changed(sample.target, boxes=flipped_boxes, ids=flipped)
    return replace(on_pixels(sample, flipped), target=target)


def rotate(sample: Sample, degrees: float) -> Sample:
    """Turn an unpadded sample with a mask about its centre, counter-clockwise; corners that open are zero in images and
    IGNORE in the mask.

    Raises:
        DataError: the target is boxes.
    """
    ids_HW = mask_of(sample.target, sample.image_id).ids_HW
    turned = on_pixels(
        sample,
        lambda x_CHW: functional.rotate_image(x_CHW, degrees, interpolation=InterpolationMode.BILINEAR),
    )
    ids_1HW = functional.rotate_image(ids_HW[None], degrees, fill=[float(IGNORE)])
    return replace(turned, target=Mask(ids_1HW[0]))


def pad(sample: Sample, canvas_hw: tuple[int, int]) -> Sample:
    """Pad to the right and below: images with zeros, masks with IGNORE."""
    height, width = sample.canvas_hw
    margins = [0, 0, canvas_hw[1] - width, canvas_hw[0] - height]
    if not any(margins):
        return sample
    target = _changed(
        sample.target,
        boxes=lambda boxes_xyxy: boxes_xyxy,
        ids=lambda ids_HW: functional.pad_image(ids_HW[None], margins, fill=IGNORE)[0],
    )
    return replace(on_pixels(sample, lambda x_CHW: functional.pad_image(x_CHW, margins)), target=target)


def drop_small_boxes(sample: Sample, min_box_px: float) -> Sample:
    """Drop boxes whose shorter side is below `min_box_px`, or zero; a mask stays."""
    boxes_xyxy = object_boxes(sample)
    shorter = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).amin(dim=1)
    return with_rows(sample, (shorter >= min_box_px) & (shorter > 0))


def object_boxes(sample: Sample) -> Tensor:
    """The boxes [N, 4] that cropping can lose; a mask has none."""
    match sample.target:
        case Boxes(boxes_xyxy):
            return boxes_xyxy
        case Mask():
            return torch.zeros(0, 4)


def with_rows(sample: Sample, is_kept_N: Tensor) -> Sample:
    """The sample with some of its `object_boxes`."""
    match sample.target:
        case Boxes(boxes_xyxy, labels):
            return replace(sample, target=Boxes(boxes_xyxy[is_kept_N], labels[is_kept_N]))
        case Mask():
            return sample


def joined_target(
    tiles: Sequence[Sample], corners_yx: Sequence[tuple[int, int]], canvas_hw: tuple[int, int]
) -> Target:
    """The target of an image that consists of tiles, given each one's top left corner."""
    placed = list(zip(tiles, corners_yx, strict=True))
    match tiles[0].target:
        case Boxes():
            boxes = [tile.boxes_xyxy + torch.tensor([left, top, left, top]) for tile, (top, left) in placed]
            return Boxes(torch.cat(boxes), torch.cat([tile.labels for tile in tiles]))
        case Mask(first_HW):
            whole_HW = first_HW.new_full(canvas_hw, IGNORE)
            for tile, (top, left) in placed:
                ids_HW = mask_of(tile.target, tile.image_id).ids_HW
                whole_HW[top : top + ids_HW.shape[0], left : left + ids_HW.shape[1]] = ids_HW
            return Mask(whole_HW)


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
    """Apply `change` to every modality; the target is unchanged."""
    return replace(sample, modalities={name: change(x_CHW) for name, x_CHW in sample.modalities.items()})


def _changed(target: Target, *, boxes: Callable[[Tensor], Tensor], ids: Callable[[Tensor], Tensor]) -> Target:
    match target:
        case Boxes(boxes_xyxy, labels):
            return Boxes(boxes(boxes_xyxy), labels)
        case Mask(ids_HW):
            return Mask(ids(ids_HW))


def _nearest(before: int, after: int) -> Tensor:
    """For each of `after` pixels the one of `before` in which its centre lies.

    >>> _nearest(4, 2).tolist(), _nearest(2, 5).tolist()
    ([1, 3], [0, 0, 1, 1, 1])
    """
    return (2 * torch.arange(after) + 1) * before // (2 * after)


def _clipped(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    height, width = size_hw
    return boxes_xyxy.clamp(
        min=boxes_xyxy.new_zeros(4), max=boxes_xyxy.new_tensor([width, height, width, height])
    )
