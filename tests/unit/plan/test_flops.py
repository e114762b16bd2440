"""The operation count against formulas and against a real pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raydet.bench.train_step import random_batch
from raydet.config import Experiment, apply_overrides
from raydet.models.backbones.mit import MIT_VARIANTS
from raydet.models.build import build_model
from raydet.plan.flops import forward_flops
from raydet.recipes import recipe

HEIGHT, WIDTH = 96, 128
CELLS_HW = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
AREAS = [height * width for height, width in CELLS_HW]
NECK, HIDDEN, ANCHORS, CLASSES, PROPOSALS = 48, 64, 1, 3, 32


def demo(**changes: Any) -> Experiment:
    return apply_overrides(recipe("demo"), {"data.canvas_hw": [HEIGHT, WIDTH], **changes})


def convolution(cells: int, kernel: int, inputs: int, outputs: int) -> int:
    """FLOPs of a convolution on a map of `cells` cells, or of a linear layer with a kernel of 1."""
    return 2 * cells * kernel**2 * inputs * outputs


def stream(in_channels: int) -> int:
    """FLOPs of a MiT stream with one block per stage, from the layers in the paper."""
    total, inputs = 0, in_channels
    nano = MIT_VARIANTS["nano"]
    for stage, (channels, ratio) in enumerate(zip(nano.channels, nano.sr_ratios, strict=True)):
        tokens = AREAS[stage]
        height, width = CELLS_HW[stage]
        reduced = (height // ratio) * (width // ratio)
        total += convolution(tokens, 7 if stage == 0 else 3, inputs, channels)  # patch embedding
        total += 2 * convolution(tokens, 1, channels, channels)  # query, projection
        total += convolution(reduced, 1, channels, 2 * channels)  # key and value
        total += convolution(reduced, ratio, channels, channels) if ratio > 1 else 0
        total += 2 * (2 * tokens * reduced * channels)  # q k^T, weights times v
        hidden = nano.mlp_ratio * channels
        total += 2 * convolution(tokens, 1, channels, hidden) + 2 * tokens * 9 * hidden  # MLP, depthwise
        inputs = channels
    return total


def test_a_single_stream_is_the_sum_of_its_layers() -> None:
    alone = {"kind": "identity"}
    counted = forward_flops(demo(**{"model.fusion": alone, "model.elsewhere": alone}))
    assert counted["encoder"] == stream(3)


def test_pyramid_and_head_are_the_sum_of_their_layers() -> None:
    counted = forward_flops(demo())
    nano = MIT_VARIANTS["nano"]
    assert counted["fpn"] == sum(
        convolution(cells, 1, channels, NECK) + convolution(cells, 3, NECK, NECK)
        for cells, channels in zip(AREAS, nano.channels, strict=False)
    )
    assert counted["rpn"] == sum(
        convolution(cells, 3, NECK, NECK) + convolution(cells, 1, NECK, ANCHORS * (1 + 4)) for cells in AREAS
    )
    assert counted["roi_heads"] == PROPOSALS * (
        convolution(1, 7, NECK, HIDDEN)
        + convolution(1, 1, HIDDEN, HIDDEN)
        + convolution(1, 1, HIDDEN, (CLASSES + 1) * 5)
    )
    assert counted["total"] == sum(flops for part, flops in counted.items() if part != "total")


def test_a_fusion_without_layers_costs_nothing() -> None:
    assert forward_flops(demo(**{"model.fusion": {"kind": "add"}}))["encoder"] == stream(3) + stream(2)


@pytest.mark.parametrize("kind", ["cmx", "gaff", "cssa", "cross_attention", "concat"])
def test_the_count_is_that_of_a_real_pass(kind: str) -> None:
    experiment = demo(**{"model.fusion": {"kind": kind}})
    detector = build_model(experiment).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector(random_batch(experiment, 1, 0))
    assert counter.get_total_flops() == forward_flops(experiment)["total"]
