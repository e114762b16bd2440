"""RoIAlign as gathers of rows against torchvision's operator: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align
from torchvision.ops.poolers import LevelMapper

from raydet.ops.roi_align import level_of, roi_align
from raydet.ops.rows import row_table

STRIDES = (4, 8, 16, 32, 64)
HEIGHT, WIDTH = 192, 256


def maps(*, dtype: torch.dtype = torch.float32, batch: int = 2, channels: int = 3) -> list[Tensor]:
    return [
        torch.randn(batch, channels, HEIGHT // stride, WIDTH // stride, dtype=dtype).requires_grad_()
        for stride in STRIDES
    ]


def boxes_of(kind: str, count: int = 60) -> Tensor:
    corner = torch.rand(count, 2) * torch.tensor([WIDTH, HEIGHT])
    match kind:
        case "inside":
            return torch.cat((corner / 2, corner / 2 + 1 + corner / 2), dim=1)
        case "tiny":
            return torch.cat((corner, corner + 0.01), dim=1)
        case "out of frame":
            return torch.cat((corner * 2 - 200, corner * 2 - 60), dim=1)
        case "degenerate":
            return torch.cat((corner, corner), dim=1)
        case "on the border":
            edges = [[0, 0, WIDTH, HEIGHT], [-4, -4, 0, 0], [WIDTH, HEIGHT, WIDTH + 9, HEIGHT + 9]]
            return torch.tensor(edges, dtype=torch.float32)
    raise AssertionError(kind)


def pooled_by_torchvision(levels: list[Tensor], boxes: Tensor, image: Tensor, level: Tensor) -> Tensor:
    out = levels[0].new_zeros(len(boxes), levels[0].shape[1], 7, 7)
    rois = torch.cat((image[:, None].to(boxes.dtype), boxes), dim=1)
    for index, (x, stride) in enumerate(zip(levels, STRIDES, strict=True)):
        here = level == index
        out[here] = torchvision_roi_align(x, rois[here], 7, 1 / stride, 2, aligned=False)
    return out


@pytest.mark.parametrize("kind", ["inside", "tiny", "out of frame", "degenerate", "on the border"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_torchvisions(kind: str, dtype: torch.dtype) -> None:
    levels, boxes = maps(dtype=dtype), boxes_of(kind).to(dtype)
    image, level = torch.randint(0, 2, (len(boxes),)), torch.randint(0, 5, (len(boxes),))
    ours = roi_align(row_table(levels, dtype=dtype), boxes, image_K=image, level_K=level, strides=STRIDES)
    theirs = pooled_by_torchvision(levels, boxes, image, level)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours, theirs, atol=4 * tolerance, rtol=0)
    weight = torch.randn_like(ours)
    our_gradients = torch.autograd.grad((ours * weight).sum(), levels)
    their_gradients = torch.autograd.grad((theirs * weight).sum(), levels)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=40 * tolerance, rtol=1e-5)


def test_without_boxes_the_result_is_empty() -> None:
    none = torch.empty(0, dtype=torch.int64)
    table = row_table(maps(), dtype=torch.float32)
    pooled = roi_align(table, torch.empty(0, 4), image_K=none, level_K=none, strides=STRIDES)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()


@pytest.mark.parametrize("num_levels", [4, 5])
def test_levels_are_torchvisions(num_levels: int) -> None:
    corner = torch.rand(500, 2) * 1000
    boxes = torch.cat((corner, corner + torch.rand(500, 2) ** 4 * 2000), dim=1)
    boxes[0, 2:] = boxes[0, :2]  # an empty box
    mapper = LevelMapper(k_min=2, k_max=1 + num_levels)
    assert torch.equal(level_of(boxes, num_levels), mapper([boxes]))


def test_the_table_holds_every_cell_and_a_zero_row() -> None:
    levels = maps()
    table = row_table(levels, dtype=torch.float32)
    for level, x in enumerate(levels):
        height, width = table.sizes_hw[level]
        row = table.starts[level] + (1 * height + 2) * width + 3
        assert torch.equal(table.rows_RC[row], x[1, :, 2, 3])
    assert not table.rows_RC[table.zero_row].any()
