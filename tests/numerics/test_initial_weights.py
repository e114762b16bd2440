"""Rank 0 brings the weights; the others hold none before, and never the whole of a sharded model."""

from __future__ import annotations

import json
import sys

import pytest

from tests.numerics.conftest import Start

SCRIPT = """
import json, sys
import torch
from torch.distributed.tensor import DTensor
from raydet.config import apply_overrides
from raydet.parallel.collectives import world_from_environment
from raydet.parallel.parallelize import parallelize
from raydet.recipes import recipe
from raydet.engine.process import initial_model
from raydet.tasks.build import build_task

world = world_from_environment()
experiment = apply_overrides(recipe("demo"), {"train.strategy": sys.argv[1]})
detector = initial_model(experiment, build_task(experiment), world)
before = sum(p.nbytes for p in detector.parameters() if not p.is_meta)
parallelize(detector, world, units=detector.units(), train=experiment.train)
parameters = list(detector.parameters())
local = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
print(json.dumps({
    "before": before,
    "storage": sum(p.untyped_storage().nbytes() for p in local),
    "whole": sum(p.nbytes for p in whole),
    "sum": sum(float(p.detach().double().abs().sum()) for p in whole),
    "buffers": sum(float(b.double().sum()) for b in detector.buffers()),
}))
"""


@pytest.mark.parametrize(("strategy", "share"), [("ddp", 1.0), ("fsdp", 0.5)])
@pytest.mark.slow
def test_weights_come_from_rank_0(strategy: str, share: float, start: Start) -> None:
    first, second = (
        json.loads(text.splitlines()[-1])
        for text in start([sys.executable, "-W", "ignore", "-c", SCRIPT, strategy], workers=2)
    )
    assert first["before"] == first["whole"]
    assert second["before"] == 0
    for found in (first, second):
        # Rows are not divided: a shard may be a row more than its share.
        assert found["storage"] == pytest.approx(share * found["whole"], rel=0.01)
    for key in ("sum", "buffers", "whole"):
        assert second[key] == first[key]
