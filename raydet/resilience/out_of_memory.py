"""Out of memory, in plain words: who, in which phase, with which images, how full, and what helps."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from raydet.config import Experiment, apply_overrides
from raydet.errors import HostMemoryError, OutOfMemoryError
from raydet.parallel.collectives import World, smallest_over_ranks
from raydet.parallel.layout import Layout
from raydet.parallel.parallelize import layout_of_run
from raydet.plan.fit import largest_micro_batch
from raydet.plan.heads import DeviceType
from raydet.plan.remedies import remedies
from raydet.plan.sizes import in_words
from raydet.resilience.current_phase import IN_WORDS, Phase, enter

NUM_NAMED_IMAGES = 8

logger = logging.getLogger("raydet")


@contextmanager
def during(phase: Phase, image_ids: Sequence[str], device: torch.device) -> Iterator[None]:
    """Enter a phase of the work on some images; where the memory ends in it, say so.

    Raises:
        OutOfMemoryError: the block has run out of memory.
    """
    enter(phase, image_ids)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory in the {IN_WORDS[phase]}{_images(image_ids)}: {_fullness(device)}"
        ) from error


@contextmanager
def naming_remedies(experiment: Experiment, world: World, *, micro_batch: int) -> Iterator[None]:
    """Add the rank and what would help, with what it would save.

    Raises:
        OutOfMemoryError: the block has raised one.
    """
    try:
        yield
    except HostMemoryError:  # nothing has failed, and it says what helps
        raise
    except OutOfMemoryError as error:
        _let_go(error)
        advice = _advice(experiment, world, micro_batch)
        raise OutOfMemoryError(f"rank {world.rank}: {error}{advice}") from error


def _let_go(error: BaseException | None) -> None:
    """Give back what the failed step holds through its traceback: planning takes memory, too."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


def _advice(experiment: Experiment, world: World, micro_batch: int) -> str:
    try:
        layout = layout_of_run(experiment.train, world)
        helpful = remedies(
            _as_laid_out(experiment, layout),
            world_size=world.world_size,
            strategy=layout.kind,
            micro_batch=micro_batch,
            device_type=device_type(world.device),
        )
    except Exception:  # whatever it is, it must not hide what it was to explain
        logger.warning("the planner failed", exc_info=True)
        return "; see `raydet plan`"
    texts = [f"{remedy.text} (saves about {in_words(remedy.saving_bytes)})" for remedy in helpful]
    return "; what helps: " + ", or ".join(texts) if texts else ""


def planned_micro_batch(experiment: Experiment, world: World, *, num_objects: int) -> int:
    """`train.micro_batch=auto`: what the planner says of the worker with the least memory, the same on every rank.

    Args:
        num_objects: the most boxes in one training image.

    Raises:
        OutOfMemoryError: not even one image at a time would fit.
    """
    share = world.ranks_per_node or world.world_size
    limit_bytes = smallest_over_ranks(memory_bytes(world.device, ranks_per_node=share), world)
    layout = layout_of_run(experiment.train, world)
    planned = experiment.train.global_batch
    if world.is_main:
        planned = (
            largest_micro_batch(
                _as_laid_out(experiment, layout),
                world_size=world.world_size,
                strategy=layout.kind,
                memory_bytes=limit_bytes,
                num_objects=num_objects,
                device_type=device_type(world.device),
            )
            or 0
        )
    planned = smallest_over_ranks(planned, world)
    if planned == 0:
        raise OutOfMemoryError(
            f"train.micro_batch=auto: one image at a time does not fit into {in_words(limit_bytes)} per worker; "
            "see `raydet plan` for strategies that do"
        )
    if world.is_main:
        logger.info("using micro-batches of %d: the most that fit into %s", planned, in_words(limit_bytes))
    return planned


def _as_laid_out(experiment: Experiment, layout: Layout) -> Experiment:
    """With the shards that the run has: the planner does not know the nodes."""
    if layout.kind != "hsdp":
        return experiment
    return apply_overrides(experiment, {"train.shard_ranks": layout.shards})


def device_type(device: torch.device) -> DeviceType:
    """What kind of device to plan for."""
    return "cuda" if device.type == "cuda" else "cpu"


def memory_bytes(device: torch.device, *, ranks_per_node: int) -> int:
    """What this worker may fill: its GPU, or its share of what the host has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    available: int = psutil.virtual_memory().available
    return available // ranks_per_node


def _is_out_of_memory(error: BaseException) -> bool:
    # Only PyTorch's own allocator on the GPU has a type for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in str(error) for sign in ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    )


def _images(image_ids: Sequence[str]) -> str:
    if not image_ids:
        return ""
    named = ", ".join(image_ids[:NUM_NAMED_IMAGES])
    more = len(image_ids) - NUM_NAMED_IMAGES
    return f" of {len(image_ids)} images ({named}{f' and {more} more' if more > 0 else ''})"


def _fullness(device: torch.device) -> str:
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return (
            f"{in_words(torch.cuda.memory_allocated(device))} live and "
            f"{in_words(torch.cuda.memory_reserved(device))} reserved of {in_words(total_bytes)} "
            f"on {torch.cuda.get_device_name(device)}, {in_words(free_bytes)} free"
        )
    host = psutil.virtual_memory()
    return (
        f"this process holds {in_words(psutil.Process().memory_info().rss)}, the host has "
        f"{in_words(host.available)} of {in_words(host.total)} left"
    )
