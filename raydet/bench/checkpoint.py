"""How long a checkpoint blocks training, compared with the bare copy of its tensors to the host."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from raydet.bench.machine import synchronize
from raydet.checkpoint.load import checkpoint_tensors, load_checkpoint
from raydet.checkpoint.manifest import read_manifest
from raydet.checkpoint.retention import checkpoint_name
from raydet.checkpoint.writer import CheckpointWriter
from raydet.config import Experiment
from raydet.engine.optim import build_optimizer
from raydet.models.build import build_model
from raydet.parallel.collectives import World


@dataclass(frozen=True, slots=True)
class CheckpointStall:
    """Medians over the checkpoints, in seconds."""

    name: str
    device: str
    tensors: int
    bytes: int
    repeats: int
    copy_s: float
    """Of a bare copy of the same tensors to allocated host memory."""
    blocked_s: float
    """For which the caller waits."""
    stall_over_copy: float
    first_blocked_s: float
    """The first checkpoint allocates the host memory."""
    committed_s: float
    """Until all is on disk."""
    write_gb_per_s: float
    load_s: float
    """To verify and load a checkpoint."""


def checkpoint_stall(
    experiment: Experiment, *, directory: Path, repeats: int, device: torch.device | None = None
) -> CheckpointStall:
    """Write checkpoints of an experiment's model and optimizer from one process.

    Args:
        directory: a directory on the disk to measure; the checkpoints are removed afterwards.
        repeats: checkpoints that count, after one that allocates the host memory.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    world = World(device=device or torch.device("cpu"))
    model = build_model(experiment).to(world.device)
    optimizer = build_optimizer(experiment.optim, model.parameters())
    _fill_state(optimizer)
    tensors = [x for part in checkpoint_tensors(model, optimizer) for x in part.values()]
    host = [torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda) for x in tensors]
    _copy_s(tensors, host)
    copies, blocked, committed = [], [], []
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="raydet-bench-", dir=directory) as root:
        with CheckpointWriter(Path(root), keep=1, world=world) as writer:
            for epoch in range(repeats + 1):
                copies.append(_copy_s(tensors, host))
                started = time.perf_counter()
                blocked.append(writer.save(epoch, model=model, optimizer=optimizer, state={}, score=epoch))
                writer.wait()
                committed.append(time.perf_counter() - started)
        newest = Path(root) / checkpoint_name(repeats)
        num_bytes = read_manifest(newest).num_bytes
        started = time.perf_counter()
        load_checkpoint(newest, model=model, optimizer=optimizer)
        load_s = time.perf_counter() - started
    copy_s, blocked_s, committed_s = (statistics.median(x[1:]) for x in (copies, blocked, committed))
    return CheckpointStall(
        name=experiment.name,
        device=str(world.device),
        tensors=len(tensors),
        bytes=num_bytes,
        repeats=repeats,
        copy_s=copy_s,
        blocked_s=blocked_s,
        stall_over_copy=blocked_s / copy_s,
        first_blocked_s=blocked[0],
        committed_s=committed_s,
        write_gb_per_s=num_bytes / (committed_s - blocked_s) / 1e9,
        load_s=load_s,
    )


def _fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the state of the first step without the activations of a step."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _copy_s(tensors: list[Tensor], host: list[Tensor]) -> float:
    synchronize(tensors[0].device)
    started = time.perf_counter()
    with torch.no_grad():
        for source, target in zip(tensors, host, strict=True):
            target.copy_(source, non_blocking=True)
    synchronize(tensors[0].device)
    return time.perf_counter() - started
