"""Both stages of the head against torchvision's: losses, every gradient, proposals and detections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign

from raydet.models.heads.box import LEVEL_STRIDES, BoxHeads
from raydet.models.heads.rpn import RegionProposals
from raydet.models.heads.targets import Targets
from raydet.ops.roi_align import level_of
from raydet.ops.rows import row_table

CANVAS = (96, 128)
VALID = [(96, 128), (64, 100)]
LEVELS = ("0", "1", "2", "3", "pool")
COUNTS = [(3, 2), (1, 0), (0, 0)]


def pyramid(channels: int = 8) -> list[Tensor]:
    maps = [
        torch.randn(2, channels, -(-CANVAS[0] // stride), -(-CANVAS[1] // stride), dtype=torch.float64)
        for stride in LEVEL_STRIDES
    ]
    return [x.requires_grad_() for x in maps]


def ground_truth(counts: tuple[int, int]) -> tuple[Targets, list[dict[str, Tensor]]]:
    """The same ground truth in our form and in torchvision's."""
    corner = torch.rand(2, 3, 2, dtype=torch.float64) * 40
    boxes = torch.cat((corner, corner + 10 + torch.rand(2, 3, 2, dtype=torch.float64) * 40), dim=2)
    labels, is_real = torch.randint(1, 4, (2, 3)), torch.arange(3) < torch.tensor(counts)[:, None]
    rows = [{"boxes": boxes[row, :count], "labels": labels[row, :count]} for row, count in enumerate(counts)]
    return Targets(boxes * is_real[..., None], labels * is_real, is_real), rows


def both_rpns() -> tuple[RegionProposals, RegionProposalNetwork]:
    ours = RegionProposals(
        channels=8,
        anchor_sizes=(12.0, 24.0, 48.0, 96.0, 192.0),
        aspect_ratios=(0.5, 1.0, 2.0),
        pre_nms_top_n=(60, 40),
        post_nms_top_n=(50, 20),
        batch_size_per_image=32,
    ).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs = RegionProposalNetwork(
        ours.anchor_generator,
        ours.head,
        0.7,
        0.3,
        32,
        0.5,
        {"training": 60, "testing": 40},
        {"training": 50, "testing": 20},
        0.7,
    )
    return ours, theirs


def gradients(losses: dict[str, Tensor], module: torch.nn.Module, maps: list[Tensor]) -> list[Tensor]:
    inputs = [*module.parameters(), *maps]
    found = torch.autograd.grad(sum(losses.values()), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("counts", COUNTS)
def test_sparse_rpn_is_torchvisions(counts: tuple[int, int]) -> None:
    ours, theirs = both_rpns()
    maps, (targets, rows) = pyramid(), ground_truth(counts)
    table = row_table(maps, dtype=torch.float64)
    torch.manual_seed(3)
    proposals, losses = ours(maps, table, canvas_hw=CANVAS, valid_hw=VALID, targets=targets)
    torch.manual_seed(3)
    images = ImageList(torch.empty(2, 0, *CANVAS), VALID)
    expected, their_losses = theirs(images, dict(zip(LEVELS, maps, strict=True)), rows)
    for mine, other in zip(proposals, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=0)
    for name, loss in their_losses.items():  # their objectness is rounded to fp32
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-6)
    for mine, other in zip(gradients(losses, ours, maps), gradients(their_losses, ours, maps), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-7 * other.abs().max().item() + 1e-12, rtol=0)


def test_proposals_at_test_are_torchvisions() -> None:
    ours, theirs = both_rpns()
    maps = pyramid()
    ours.eval(), theirs.eval()
    table = row_table(maps, dtype=torch.float64)
    proposals, losses = ours(maps, table, canvas_hw=CANVAS, valid_hw=VALID, targets=None)
    expected, _ = theirs(ImageList(torch.empty(2, 0, *CANVAS), VALID), dict(zip(LEVELS, maps, strict=True)))
    assert losses == {}
    for mine, other in zip(proposals, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=0)


def both_box_heads(num_levels: int) -> tuple[BoxHeads, RoIHeads]:
    ours = BoxHeads(
        channels=8,
        num_classes=3,
        hidden=16,
        batch_size_per_image=16,
        num_levels=num_levels,
        score_threshold=0.2,
        nms_threshold=0.5,
        max_detections=20,
    ).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    pooling = MultiScaleRoIAlign(list(LEVELS[:num_levels]), output_size=7, sampling_ratio=2)
    pooling.scales = [1 / stride for stride in LEVEL_STRIDES[:num_levels]]
    pooling.map_levels = LevelMapper(k_min=2, k_max=1 + num_levels)
    theirs = RoIHeads(pooling, ours.box_head, ours.box_predictor, 0.5, 0.5, 16, 0.25, None, 0.2, 0.5, 20)
    return ours, theirs


def some_proposals() -> list[Tensor]:
    """A different number in each image."""
    corner = torch.rand(50, 2, dtype=torch.float64) * 50
    boxes = torch.cat((corner, corner + 5 + torch.rand(50, 2, dtype=torch.float64) * 40), dim=1)
    return [boxes[:33], boxes[33:]]


@pytest.mark.parametrize("num_levels", [4, 5])
@pytest.mark.parametrize("counts", COUNTS)
def test_box_heads_are_torchvisions(counts: tuple[int, int], num_levels: int) -> None:
    ours, theirs = both_box_heads(num_levels)
    maps, (targets, rows) = pyramid(), ground_truth(counts)
    features, proposals = dict(zip(LEVELS, maps, strict=True)), some_proposals()
    torch.manual_seed(3)
    losses = ours.losses(maps, row_table(maps, dtype=torch.float64), proposals, targets)
    torch.manual_seed(3)
    _, their_losses = theirs(features, list(proposals), VALID, rows)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: loss.item() for name, loss in their_losses.items()}, rel=1e-9
    )
    for mine, other in zip(gradients(losses, ours, maps), gradients(their_losses, ours, maps), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9 * other.abs().max().item() + 1e-12, rtol=0)


def test_a_gpu_pools_level_by_level_what_a_cpu_pools_from_rows() -> None:
    ours, _ = both_box_heads(5)
    maps, boxes = pyramid(), torch.cat(some_proposals())
    boxes[::3] *= 8
    boxes[::7] /= 20
    image, level = torch.randint(0, 2, (len(boxes),)), level_of(boxes, 5)
    assert len(level.unique()) > 1
    pooled = ours.pooled(maps, row_table(maps, dtype=torch.float64), boxes, image)
    by_level = ours._pooled_by_level(maps, boxes, image, level)
    torch.testing.assert_close(pooled, by_level, atol=1e-12, rtol=0)


def test_detections_are_torchvisions() -> None:
    ours, theirs = both_box_heads(5)
    theirs.eval()
    maps, proposals = pyramid(), some_proposals()
    found = ours.detections(maps, row_table(maps, dtype=torch.float64), proposals, VALID)
    expected, _ = theirs(dict(zip(LEVELS, maps, strict=True)), proposals, VALID)
    assert sum(len(row.scores) for row in found)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.boxes_xyxy, other["boxes"], atol=1e-9, rtol=0)
        torch.testing.assert_close(mine.scores, other["scores"], atol=1e-9, rtol=0)
        assert torch.equal(mine.labels, other["labels"] - 1)


def test_without_proposals_there_are_no_detections() -> None:
    ours, _ = both_box_heads(5)
    maps = pyramid()
    none = torch.empty(0, 4, dtype=torch.float64)
    for row in ours.detections(maps, row_table(maps, dtype=torch.float64), [none, none], VALID):
        assert len(row.scores) == 0


def test_biases_learn_under_autocast() -> None:
    # The dense pass without a graph must not leave its rounded weights in autocast's cache.
    ours, _ = both_rpns()
    ours.float()
    maps = [x.detach().float() for x in pyramid()]
    targets, _ = ground_truth((3, 2))
    targets = Targets(targets.boxes_BG4.float(), targets.labels_BG, targets.is_real_BG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = row_table(maps, dtype=torch.float32)
        _, losses = ours(maps, table, canvas_hw=CANVAS, valid_hw=VALID, targets=targets)
    sum(losses.values()).backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.any()] == []
