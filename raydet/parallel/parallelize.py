"""The only module that wraps a model. The order matters:

1. activation checkpointing, so that what is compiled and sharded is the unit that recomputes;
2. torch.compile of the encoder blocks, each alone: a few graphs serve them all;
3. batch norms over all workers, if enabled;
4. FSDP2's `fully_shard` (arXiv 2304.11277) unit by unit, or DistributedDataParallel around the whole.

Rank 0 has the weights; on the other ranks the model may be on the meta device. They receive the weights, or their
shards of them.
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
from torch.distributed.device_mesh import init_device_mesh
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
    """The model on its device, wrapped as configured.

    Args:
        model: with its weights on rank 0; on the other ranks it may be on the meta device.

    Raises:
        ConfigError: the strategy does not fit the number of workers, or there is no compiler.
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
    """The model inside `parallelize`'s wrapper; its parameters may be sharded (`DTensor`)."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def gradient_sync(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """While the block runs, backward passes average gradients over the workers only if `enabled`: once per step."""
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
            f"train.compile requires a C++ compiler on the CPU, {compiler} was not found; install it, or set CXX"
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
    # Depthwise kernels have a dimension of size one, whose stride is arbitrary: nothing is copied for it.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified in DDP constructor")
    # Gradients are views of the communication buckets: one copy of them less in memory. After its first step DDP
    # rebuilds the buckets in another order, so three or more workers add in another order: a resumed run, whose first
    # step comes later, would differ in the last bits. With find_unused_parameters the order stays (and a parameter
    # without a gradient is no longer an error).
    wrapped = DistributedDataParallel(
        model.to(world.device),
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=exact,
    )
    # Each rank collects statistics of its own images, averaged later; broadcasting would replace them by rank 0's.
    wrapped.broadcast_buffers = False
    return wrapped


def _sharded(model: nn.Module, units: Units, world: World, layout: Layout) -> nn.Module:
    # Fusions return views of their tokens; nothing modifies them in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    weights = model.state_dict()
    if layout.kind == "fsdp":
        mesh = init_device_mesh(world.device.type, (layout.shards,))
    else:
        sizes = (layout.replicas, layout.shards)
        mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=("replicate", "shard"))
    for unit in (*units.blocks, *units.fusions, *units.rest):
        fully_shard(unit, mesh=mesh)
    # By default the root's own parameters stay unsharded after an evaluation, where checkpoints miss them.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    _receive(model, weights, world)
    return model


def _receive(model: nn.Module, weights: Mapping[str, torch.Tensor], world: World) -> None:
    """Copy rank 0's weights and running statistics to every rank; meta tensors become real."""
    received = {}
    for name, target in model.state_dict().items():
        if world.is_main and not isinstance(target, DTensor):
            whole = target  # without a second copy
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
        part.clone(),  # a view would keep the whole tensor alive
        target.device_mesh,
        target.placements,
        shape=whole.shape,
        stride=whole.stride(),
    )
