"""The one place that wraps a model for several workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raydet.parallel.collectives import World


def parallelize(model: nn.Module, world: World) -> nn.Module:
    """The model on its device, wrapped in DistributedDataParallel where there are several workers."""
    model = model.to(world.device)
    if world.world_size == 1:
        return model
    # The gradients are views of the communication buckets: one copy of them less in memory.
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model as it was before `parallelize`."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def gradient_sync(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Gradients are averaged over the workers in the backward pass only where `enabled`: once per step."""
    if isinstance(model, DistributedDataParallel) and not enabled:
        with model.no_sync():
            yield
    else:
        yield
