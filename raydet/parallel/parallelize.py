"""The one place that wraps a model. The order matters:

1. activation checkpointing, so that what is compiled and sharded is the unit that recomputes;
2. torch.compile of the encoder blocks, each alone: a few graphs serve them all;
3. batch norms over all workers, where asked for;
4. FSDP2's `fully_shard` (arXiv 2304.11277) unit by unit, or DistributedDataParallel around the whole.

Rank 0 brings the weights; the other ranks may come with a model on the meta device and receive them, in pieces where
the model is sharded.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from raydet.config import TrainConfig
from raydet.errors import ConfigError
from raydet.parallel.collectives import World
from raydet.parallel.layout import Layout, layout_of
from raydet.parallel.recompute import recompute_activations
from raydet.parallel.sync_batch_norm import synchronize_batch_norms


class Units(Protocol):
    """The parts of a model that are wrapped one by one, see `raydet.models.units`."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Compiled and recomputed."""

    @property
    def fusions(self) -> Sequence[nn.Module]:
        """Recomputed."""

    @property
    def rest(self) -> Sequence[nn.Module]:
        """Only sharded."""


def parallelize(model: nn.Module, world: World, *, units: Units, train: TrainConfig) -> nn.Module:
    """The model on its device, wrapped as `train` says.

    Args:
        model: with its weights on rank 0; on the other ranks it may be on the meta device.
        units: of the model.

    Raises:
        ConfigError: the strategy does not fit the number of workers, or there is nothing to compile with.
    """
    layout = layout_of_run(train, world)
    recompute_activations([*units.blocks, *units.fusions], train.activation_checkpointing)
    if train.compile:
        _compile(units.blocks, world.device)
    if train.sync_batch_norm:
        synchronize_batch_norms(model, world)
    if layout.is_sharded:
        return _sharded(model, units, world, layout)
    return _replicated(model, world, exact=train.exact or world.device.type == "cpu")


def layout_of_run(train: TrainConfig, world: World) -> Layout:
    """The layout of this run's workers.

    Raises:
        ConfigError: the strategy does not fit the number of workers.
    """
    return layout_of(
        train.strategy,
        world_size=world.world_size,
        shard_ranks=train.shard_ranks,
        ranks_per_node=world.ranks_per_node,
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model as it was before `parallelize`; its parameters may be pieces (`DTensor`)."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def gradient_sync(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Gradients are averaged over the workers in the backward pass only where `enabled`: once per step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
        yield
    elif isinstance(model, DistributedDataParallel) and not enabled:
        with model.no_sync():
            yield
    else:
        yield


def _compile(blocks: Sequence[nn.Module], device: torch.device) -> None:
    compiler = shlex.split(os.environ.get("CXX", "g++"))[0]
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compile wants a C++ compiler on the CPU, there is no {compiler}; install it, or name one in CXX"
        )
    # One graph per stage, mode and batch size: more than torch's default limit of 8.
    torch._dynamo.config.recompile_limit = 64
    for block in blocks:
        block.compile(dynamic=False)


def _replicated(model: nn.Module, world: World, *, exact: bool) -> nn.Module:
    if world.world_size == 1:
        return model.to(world.device)
    if world.is_main:
        model.to(world.device)
    _receive(model, model.state_dict(), world)
    # Depthwise kernels have a dimension of size one, whose stride may be anything: nothing is copied for it.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified in DDP constructor")
    # The gradients are views of the communication buckets: one copy of them less in memory. After its first step DDP
    # fills the buckets in another order, and three or more workers then add in another order: a run that resumes, whose
    # first step comes later, would differ in the last bits. Where DDP looks for unused parameters, the order stays
    # (and one without a gradient is no error any more).
    wrapped = DistributedDataParallel(
        model.to(world.device),
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=exact,
    )
    # Each rank collects statistics of its own images, to be averaged; else all would take rank 0's at every step.
    wrapped.broadcast_buffers = False
    return wrapped


def _sharded(model: nn.Module, units: Units, world: World, layout: Layout) -> nn.Module:
    # Fusions return views of their tokens; nothing here works in place on them.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    weights = model.state_dict()
    mesh = _mesh(world, layout)
    for unit in (*units.blocks, *units.fusions, *units.rest):
        fully_shard(unit, mesh=mesh)
    # By default the root's own parameters would stay whole after an evaluation, out of sight of checkpoints.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    _receive(model, weights, world)
    return model


def _mesh(world: World, layout: Layout) -> DeviceMesh:
    if layout.kind == "fsdp":
        return init_device_mesh(world.device.type, (layout.shards,))
    return init_device_mesh(
        world.device.type, (layout.replicas, layout.shards), mesh_dim_names=("replicate", "shard")
    )


def _receive(model: nn.Module, weights: Mapping[str, torch.Tensor], world: World) -> None:
    """Rank 0's weights and running statistics, on every rank; what is on the meta device becomes real."""
    received = {}
    for name, target in model.state_dict().items():
        if world.is_main and not isinstance(target, DTensor):
            whole = target  # no second copy of what is there
        else:
            whole = torch.empty(target.shape, dtype=target.dtype, device=world.device)
        if world.is_main and isinstance(target, DTensor):
            whole.copy_(weights[name])
        dist.broadcast(whole, src=0)
        received[name] = _my_part(whole, target) if isinstance(target, DTensor) else whole
    model.load_state_dict(received, assign=True)


def _my_part(whole: torch.Tensor, target: DTensor) -> DTensor:
    part = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None).to_local()
    return DTensor.from_local(
        part.clone(),  # else it would keep the whole alive
        target.device_mesh,
        target.placements,
        shape=whole.shape,
        stride=whole.stride(),
    )
