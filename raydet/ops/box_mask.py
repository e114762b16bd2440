"""Boxes as filled masks on a coarser grid.

Legend: B batch, G boxes (padded), H W map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_mask(
    boxes_BG4: Tensor, is_real_BG: Tensor, *, map_hw: tuple[int, int], canvas_hw: tuple[int, int]
) -> Tensor:
    """bool [B, 1, H, W], True where the centre of a cell of a map that covers the canvas is inside a box.

    Args:
        boxes_BG4: x1, y1, x2, y2 in canvas pixels.
        is_real_BG: False for padding.

    >>> boxes = torch.tensor([[[5.0, 0.0, 20.0, 8.0]]])
    >>> box_mask(boxes, torch.tensor([[True]]), map_hw=(2, 3), canvas_hw=(16, 24)).int().tolist()
    [[[[0, 1, 0], [0, 0, 0]]]]
    """
    (height, width), (canvas_h, canvas_w) = map_hw, canvas_hw
    y_H = (torch.arange(height, device=boxes_BG4.device) + 0.5) * (canvas_h / height)
    x_W = (torch.arange(width, device=boxes_BG4.device) + 0.5) * (canvas_w / width)
    x1_BG1, y1_BG1, x2_BG1, y2_BG1 = boxes_BG4[..., None].unbind(dim=2)
    in_rows_BGH = (y1_BG1 <= y_H) & (y_H < y2_BG1) & is_real_BG[..., None]
    in_columns_BGW = (x1_BG1 <= x_W) & (x_W < x2_BG1)
    # A matrix product counts the boxes around each cell without a tensor of boxes x cells.
    return (in_rows_BGH.float().mT @ in_columns_BGW.float() > 0)[:, None]
