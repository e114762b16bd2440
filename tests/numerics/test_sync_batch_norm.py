"""Two workers' synchronised batch norm equals one worker's batch norm on both batches."""

from __future__ import annotations

import json
import sys

import pytest

from raydet.errors import ConfigError
from raydet.models.backbones.timm import timm_stages
from raydet.parallel.collectives import World
from raydet.parallel.sync_batch_norm import synchronize_batch_norms
from tests.numerics.conftest import Start

SCRIPT = """
import json
import torch
import torch.distributed as dist
from torch import nn
from raydet.parallel.collectives import world_from_environment
from raydet.parallel.recompute import recompute_activations
from raydet.parallel.sync_batch_norm import synchronize_batch_norms

world = world_from_environment()
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 3))
nn.init.uniform_(model[1].weight)
x = (3 + torch.randn(4, 2, 6, 5)).chunk(world.world_size)[world.rank].requires_grad_()
synchronize_batch_norms(model, world)
recompute_activations([model], "block")
for _ in range(2):
    model(x).square().mean().backward()
gradients = [parameter.grad for parameter in model.parameters()]
if world.world_size > 1:
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= world.world_size
model.eval()
print(json.dumps({
    "gradients": [gradient.flatten().tolist() for gradient in gradients],
    "x": (x.grad / world.world_size).flatten().tolist(),
    "statistics": [buffer.flatten().tolist() for buffer in model.buffers()],
    "evaluation": model(x).square().mean().item(),
    "kind": type(model[1]).__name__,
}))
"""


def test_two_workers_equal_one(start: Start) -> None:
    alone, one, two = (
        json.loads(text.splitlines()[-1])
        for workers in (1, 2)
        for text in start([sys.executable, "-c", SCRIPT], workers=workers)
    )
    assert (alone["kind"], one["kind"]) == ("BatchNorm2d", "SyncBatchNorm2d")
    for mine, wanted in zip(one["gradients"], alone["gradients"], strict=True):
        assert mine == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert one["x"] + two["x"] == pytest.approx(alone["x"], rel=1e-4, abs=1e-6)
    for mine, wanted in zip(one["statistics"], alone["statistics"], strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5)
    assert (one["evaluation"] + two["evaluation"]) / 2 == pytest.approx(alone["evaluation"], rel=1e-5)


def test_batch_norms_with_more_to_do_are_refused() -> None:
    stages = timm_stages(name="test_byobnet", in_channels=3)
    with pytest.raises(ConfigError, match=r"is a BatchNormAct2d; set it to false, or take a backbone"):
        synchronize_batch_norms(stages, World())
    synchronize_batch_norms(timm_stages(name="test_resnet", in_channels=3), World())
