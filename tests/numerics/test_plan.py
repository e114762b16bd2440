"""The plan's lasting bytes against the real ones of sharded ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from raydet.config import apply_overrides
from raydet.plan.ledger import ledger
from raydet.recipes import recipe
from tests.numerics.conftest import Start

# The storages that stay: of parameters, gradients and optimizer state, by kind; and the peak of one more step.
LASTING = """
import json, sys
from pathlib import Path
sys.path.insert(0, "")
import torch
from torch.distributed.tensor import DTensor
from raydet.config import Experiment
from raydet.models.build import build_model
from raydet.parallel.collectives import world_from_environment
from raydet.parallel.parallelize import parallelize
from raydet.engine.optim import build_optimizer
from tests.unit.plan.real import batch_of

experiment = Experiment.from_json(Path(sys.argv[1]).read_text(), where="test")
world = world_from_environment()
detector = build_model(experiment)
model = parallelize(detector, world, units=detector.units(), train=experiment.train).train()
optimizer = build_optimizer(experiment.optim, model.parameters())

def bytes_of(tensors):
    locals_ = [x.to_local() if isinstance(x, DTensor) else x for x in tensors if x.ndim]
    return sum(dict((s.data_ptr(), s.nbytes()) for s in (x.untyped_storage() for x in locals_)).values())

sum(model(batch_of(experiment, 2)).losses.values()).backward()
optimizer.step()
print(json.dumps({
    "weights": bytes_of(model.parameters()),
    "gradients": bytes_of(p.grad for p in model.parameters()),
    "optimizer state": bytes_of(x for state in optimizer.state.values() for x in state.values()),
}))
"""


@pytest.mark.slow
def test_what_sharded_ranks_hold(start: Start, tmp_path: Path) -> None:
    run = apply_overrides(recipe("demo"), {"train.strategy": "fsdp", "train.global_batch": 6})
    planned = ledger(run, world_size=3, strategy="fsdp", micro_batch=2)
    config = tmp_path / "config.json"
    config.write_text(run.to_json())
    for output in start([sys.executable, "-c", LASTING, str(config)], workers=3):
        for name, found_bytes in json.loads(output.splitlines()[-1]).items():
            assert abs(planned.bytes_of(name) - found_bytes) <= 0.05 * found_bytes, name
