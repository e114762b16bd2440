"""Out-of-memory errors that name the rank, the phase, the images, the memory in use, and what helps."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from raydet.config import Experiment, apply_overrides
from raydet.errors import HostMemoryError, OutOfMemoryError
from raydet.models.heads.base import DeviceType
from raydet.parallel.collectives import World, smallest_over_ranks
from raydet.parallel.layout import Layout
from raydet.parallel.parallelize import layout_of_run
from raydet.plan.fit import largest_micro_batch
from raydet.plan.remedies import remedies
from raydet.plan.sizes import format_bytes
from raydet.resilience.current_phase import PHASE_NAMES, Phase, enter

NUM_NAMED_IMAGES = 8

logger = logging.getLogger("raydet")


@contextmanager
def during(phase: Phase, image_ids: Sequence[str], device: torch.device) -> Iterator[None]:
    """Enter a phase of the work on some images; an out-of-memory error in the block names both.

    Raises:
        OutOfMemoryError: the block has run out of memory.
    """
    enter(phase, image_ids)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Only PyTorch's allocator on the GPU has an exception type for it.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(
            sign in str(error) for sign in ("can't allocate memory", "out of memory", "ALLOC_FAILED")
        ):
            raise
        raise OutOfMemoryError(
            f"out of memory in the {PHASE_NAMES[phase]}{_images(image_ids)}: {_memory_in_use(device)}"
        ) from error


@contextmanager
def naming_remedies(experiment: Experiment, world: World, *, micro_batch: int) -> Iterator[None]:
    """Add the rank and the remedies, with the bytes that each saves, to an out-of-memory error of the block.

    Raises:
        OutOfMemoryError: the block has raised one.
    """
    try:
        yield
    except HostMemoryError:  # nothing has failed, and it says what helps
        raise
    except OutOfMemoryError as error:
        failure: BaseException | None = error
        while failure is not None:  # free the tensors of the failed step: planning takes memory, too
            traceback.clear_frames(failure.__traceback__)
            failure = failure.__cause__
        advice = _advice(experiment, world, micro_batch)
        raise OutOfMemoryError(f"rank {world.rank}: {error}{advice}") from error


def _advice(experiment: Experiment, world: World, micro_batch: int) -> str:
    try:
        layout = layout_of_run(experiment.train, world)
        helpful = remedies(
            _with_shard_ranks(experiment, layout),
            world_size=world.world_size,
            strategy=layout.kind,
            micro_batch=micro_batch,
            device_type=device_type(world.device),
        )
    except Exception:  # it must not hide the error that it was to explain
        logger.warning("the planner failed", exc_info=True)
        return "; see `raydet plan`"
    texts = [f"{remedy.text} (saves about {format_bytes(remedy.saving_bytes)})" for remedy in helpful]
    return "; what helps: " + ", or ".join(texts) if texts else ""


def planned_micro_batch(experiment: Experiment, world: World, *, num_objects: int) -> int:
    """The micro-batch of `train.micro_batch=auto`: what fits on the worker with the least memory, equal on all ranks.

    Args:
        num_objects: largest number of boxes in one training image.

    Raises:
        OutOfMemoryError: not even one image at a time fits.
    """
    share = world.ranks_per_node or world.world_size
    limit_bytes = smallest_over_ranks(memory_bytes(world.device, ranks_per_node=share), world)
    layout = layout_of_run(experiment.train, world)
    largest: int | None = experiment.train.global_batch
    if world.is_main:
        largest = largest_micro_batch(
            _with_shard_ranks(experiment, layout),
            world_size=world.world_size,
            strategy=layout.kind,
            memory_bytes=limit_bytes,
            num_objects=num_objects,
            device_type=device_type(world.device),
        )
    planned = smallest_over_ranks(largest or 0, world)
    if planned == 0:
        raise OutOfMemoryError(
            f"train.micro_batch=auto: one image at a time does not fit into {format_bytes(limit_bytes)} per worker; "
            "see `raydet plan` for strategies that do"
        )
    if world.is_main:
        logger.info(
            "using micro-batches of %d: the most that fit into %s", planned, format_bytes(limit_bytes)
        )
    return planned


def _with_shard_ranks(experiment: Experiment, layout: Layout) -> Experiment:
    """The experiment with the number of shards of this run: the planner does not know the nodes."""
    if layout.kind != "hsdp":
        return experiment
    return apply_overrides(experiment, {"train.shard_ranks": layout.shards})


def device_type(device: torch.device) -> DeviceType:
    """The kind of device to plan for."""
    return "cuda" if device.type == "cuda" else "cpu"


def memory_bytes(device: torch.device, *, ranks_per_node: int) -> int:
    """Memory of this worker: of its GPU, or its share of what the host has available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return int(psutil.virtual_memory().available) // ranks_per_node


def _images(image_ids: Sequence[str]) -> str:
    if not image_ids:
        return ""
    named = ", ".join(image_ids[:NUM_NAMED_IMAGES])
    more = len(image_ids) - NUM_NAMED_IMAGES
    return f" of {len(image_ids)} images ({named}{f' and {more} more' if more > 0 else ''})"


def _memory_in_use(device: torch.device) -> str:
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return (
            f"{format_bytes(torch.cuda.memory_allocated(device))} live and "
            f"{format_bytes(torch.cuda.memory_reserved(device))} reserved of {format_bytes(total_bytes)} "
            f"on {torch.cuda.get_device_name(device)}, {format_bytes(free_bytes)} free"
        )
    host = psutil.virtual_memory()
    return (
        f"this process holds {format_bytes(psutil.Process().memory_info().rss)}, the host has "
        f"{format_bytes(host.available)} of {format_bytes(host.total)} left"
    )
