"""Logits at a head's stride, at the size of the source image.

Legend: N outputs, h w map, H W source.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

STRIPE_NUMBERS = 1 << 24
"""Bounds the memory: a stripe has about this many logits, 64 MiB in fp32."""


def source_stripes(
    logits_Nhw: Tensor, *, canvas_hw: tuple[int, int], valid_hw: tuple[int, int], source_hw: tuple[int, int]
) -> Iterator[Tensor]:
    """Logits of an image at the size of its source, as stripes from top to bottom: fp32 [1, N, rows, W] each.

    They are upsampled to the canvas, where the padding is cut off, and resized to the source from there: the image's
    edge need not fall between two cells of the map. Both steps are bilinear, with the corners not aligned, as the
    losses have it.

    Args:
        logits_Nhw: they cover the canvas.
        valid_hw: the top left part of the canvas that is image.
    """
    canvas_NHW = interpolate(logits_Nhw[None].float(), size=canvas_hw, mode="bilinear", align_corners=False)
    (valid_h, valid_w), (height, width) = valid_hw, source_hw
    valid_1Nhw = canvas_NHW[:, :, :valid_h, :valid_w]
    rows = max(1, STRIPE_NUMBERS // (len(logits_Nhw) * width))
    if valid_hw == source_hw:
        yield from valid_1Nhw.split(rows, dim=2)
        return
    # Rows are mixed here and columns by `interpolate`, because `interpolate` cannot give a part of its result.
    at_H = ((torch.arange(height, dtype=torch.float64) + 0.5) * valid_h / height - 0.5).clamp(0, valid_h - 1)
    above_H = at_H.long()
    below_H = (above_H + 1).clamp(max=valid_h - 1)
    share_H1 = (at_H - above_H)[:, None].float()
    for start in range(0, height, rows):
        stripe = slice(start, start + rows)
        above, below, share = (x[stripe].to(canvas_NHW.device) for x in (above_H, below_H, share_H1))
        mixed_1Nhw = valid_1Nhw[:, :, above].lerp(valid_1Nhw[:, :, below], share)
        size = (mixed_1Nhw.shape[2], width)
        yield interpolate(mixed_1Nhw, size=size, mode="bilinear", align_corners=False)
