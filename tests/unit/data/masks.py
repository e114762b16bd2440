"""Images in which every class has its colour, with masks: each pixel tells what its id must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from raydet.data.sources.base import Targets
from raydet.structures import IGNORE, Mask, Sample

CLASSES = ("ground", "box", "disc")
COLOURS = torch.zeros(256, 3, dtype=torch.uint8)
"""RGB by id; black, the colour of padding, is none of a class."""
COLOURS[:3] = torch.tensor([[60, 70, 80], [250, 20, 90], [30, 220, 160]])
COLOURS[IGNORE] = 255


def painted(ids_HW: Tensor, image_id: str = "a") -> Sample:
    """An image in the colours of a mask."""
    rgb = COLOURS[ids_HW.long()].permute(2, 0, 1)
    size_hw = int(ids_HW.shape[0]), int(ids_HW.shape[1])
    modalities = {"rgb": rgb, "thermal": rgb[:1]}
    return Sample(image_id, "a group", modalities, Mask(ids_HW), source_hw=size_hw, valid_hw=size_hw)


def shapes(size_hw: tuple[int, int], number: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """A box and a disc in front of it, with a rim of IGNORE between disc and ground: ids [H, W]."""
    height, width = size_hw
    ids_HW = torch.zeros(size_hw, dtype=dtype)
    top, left = number % (height // 3), 3 * number % (width // 3)
    ids_HW[top : top + height // 2, left : left + width // 2] = 1
    y_H1, x_W = torch.arange(height)[:, None], torch.arange(width)
    radius = min(size_hw) // 4
    distance_HW = ((y_H1 - 2 * height // 3) ** 2 + (x_W - width // 2 - number % radius) ** 2).sqrt()
    ids_HW[distance_HW < radius + 2] = IGNORE
    ids_HW[distance_HW < radius] = 2
    return ids_HW


@st.composite
def painted_shapes(draw: st.DrawFn) -> Sample:
    """Two classes on the ground, and pixels without a label."""
    size_hw = draw(st.tuples(st.integers(24, 90), st.integers(24, 90)))
    number, dtype = draw(st.integers(0, 99)), draw(st.sampled_from([torch.uint8, torch.int16]))
    return painted(shapes(size_hw, number, dtype), str(number))


@dataclass(frozen=True, slots=True)
class MaskSet:
    """A set of a few images of shapes."""

    num_images: int = 6
    size_hw: tuple[int, int] = (40, 48)
    first: int = 0
    """Number of the first image's shapes."""
    step: int = 1
    """Between the numbers of images: larger ones resemble one another less."""
    classes: tuple[str, ...] = CLASSES
    modalities: tuple[str, ...] = ("rgb", "thermal")

    @property
    def image_ids(self) -> Sequence[str]:
        return [f"image {index}" for index in range(self.num_images)]

    @property
    def group_ids(self) -> Sequence[str]:
        return ["a group"] * self.num_images

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int) -> Sample:
        return painted(shapes(self.size_hw, self.first + self.step * index), self.image_ids[index])

    def targets(self, index: int) -> Targets:
        return self.read(index).target, self.size_hw
