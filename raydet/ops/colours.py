"""Modalities as RGB images.

One channel is shown in grey, three in colour. Any other number is projected: the channels are spread evenly from red
through green to blue, in their order (of 20 event windows the first is red and the last blue), and the brightest value
is scaled to 1. Nothing else is stretched: a night image stays black.

Classes of masks get colours that differ from their neighbours', unless their set brings its own.

Legend: C channels, H W image.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_colours(x_CHW: Tensor) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] from uint8 in 0..255 or float in 0..1; values that are not finite are shown black.

    >>> as_colours(torch.tensor([[[255]], [[0]], [[0]]], dtype=torch.uint8)).tolist()
    [[[255, 0, 0]]]
    >>> as_colours(torch.tensor([0.0, 0.0, 0.0, 0.5])[:, None, None]).tolist()  # the last of four channels
    [[[0, 0, 255]]]
    """
    scale = 255 if x_CHW.dtype == torch.uint8 else 1
    values_CHW = (x_CHW.float() / scale).nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp(min=0).numpy()
    if len(values_CHW) not in (1, 3):
        # Share of each channel in red, green and blue: tents around the first, the middle and the last channel.
        position_C = np.linspace(0, 2, len(values_CHW))
        share_3C = np.clip(1 - np.abs(np.arange(3)[:, None] - position_C), 0, None)
        values_CHW = np.einsum("ic,chw->ihw", share_3C, values_CHW)
        values_CHW = values_CHW / max(float(values_CHW.max()), np.finfo(np.float32).tiny)
    bytes_HWC = np.rint(values_CHW.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.broadcast_to(bytes_HWC, (*bytes_HWC.shape[:2], 3))


GOLDEN_RATIO = (5**0.5 - 1) / 2
OPEN_RGB = (0, 0, 0)
"""Colour of pixels without a class."""


def class_colours(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """RGB of each class, 0..255: hues a golden ratio apart, in two brightnesses by turns.

    >>> class_colours(2)
    ((230, 69, 69), (82, 105, 163))
    """
    hues = [(index * GOLDEN_RATIO) % 1 for index in range(num_classes)]
    shades = [(0.7, 0.9), (0.5, 0.64)]
    colours = [colorsys.hsv_to_rgb(hue, *shades[index % 2]) for index, hue in enumerate(hues)]
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colours)


def painted(ids_HW: Tensor, colours: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
    """A mask in colours: uint8 [H, W, 3]; ids without a colour are black."""
    table = np.array([*colours, OPEN_RGB], dtype=np.uint8)
    ids = ids_HW.cpu().numpy().astype(np.int64)
    return table[np.where((ids >= 0) & (ids < len(colours)), ids, len(colours))]
