"""One rank's memory during a training step, row by row, at the worst moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raydet.config import Experiment, Strategy
from raydet.data.sampler import batch_plan
from raydet.errors import ConfigError
from raydet.models.build import MakeHead
from raydet.models.heads.base import TARGETS, DeviceType, check_micro_batch
from raydet.parallel.layout import Layout, layout_of
from raydet.plan.counts import least_images, parts_of, state_copies, update_copies
from raydet.plan.measure import GRADIENTS, WEIGHT_COPIES, WORKSPACE, Linear, measure
from raydet.plan.moments import COMMUNICATION, STATE, WEIGHTS, Moment, Step
from raydet.plan.sizes import MIB

LIBRARIES = "library workspaces"
MARGIN = "margin"

DEFAULT_OBJECTS = 50
"""Default of ground truths per image: more than in most data sets."""

FRAGMENTATION = 0.05
"""Share of the live bytes that the caching allocator loses to rounding and gaps; an estimate."""
LIBRARY_BYTES = 512 * MIB
"""Allocations of cuBLAS and cuDNN. Fitted: the plan is within 2 % of nine steps measured on an H100, from 4.8 to
49.6 GiB, all of 16 images (BENCHMARKS.md)."""
CONTEXT_BYTES = 768 * MIB
"""Memory of a process outside the allocator (CUDA context, kernels); an estimate."""
COMMUNICATOR_BYTES = 256 * MIB
"""NCCL's buffers, if there are several ranks."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of memory."""

    name: str
    bytes: int
    """The maximum over the step; for activations, the bytes kept after the forward pass."""
    image_bytes: int
    """The part of `bytes` that each image of a micro-batch adds."""
    peak_bytes: int
    """Bytes at the worst moment of the step."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The memory of one rank."""

    layout: Layout
    micro_batch: int
    accumulation: int
    moment: str
    """Name of the moment of the peak."""
    rows: tuple[Row, ...]
    activation_bytes: int
    """Bytes that autograd keeps for the backward pass after the forward pass."""

    @property
    def peak_bytes(self) -> int:
        """The memory that the device must have."""
        return sum(row.peak_bytes for row in self.rows)

    @property
    def allocated_bytes(self) -> int:
        """The peak as reported by `torch.cuda.max_memory_allocated`."""
        return self.peak_bytes - self.bytes_of(MARGIN)

    def bytes_of(self, name: str) -> int:
        """The maximum of a row over the step; 0 if there is no such row."""
        return sum(row.bytes for row in self.rows if row.name == name)


def ledger(
    experiment: Experiment,
    *,
    world_size: int,
    strategy: Strategy,
    micro_batch: int,
    shard_ranks: int | None = None,
    num_objects: int = DEFAULT_OBJECTS,
    device_type: DeviceType = "cuda",
    make_head: MakeHead | None = None,
) -> Ledger:
    """The memory that one rank needs; the first call for a model measures it, which takes about two seconds.

    Args:
        experiment: its strategy and micro-batch are ignored.
        world_size: ranks that share the global batch.
        micro_batch: images, or clips, per rank and forward pass; accumulation follows from the global batch.
        num_objects: ground truths per image in the worst batch.
        device_type: on a CPU the head uses other kernels, and there is no CUDA context.
        make_head: see `raydet.models.build.build_model`.

    Raises:
        ConfigError: a number is not positive, the batch does not divide, the strategy does not fit the ranks, the
            micro-batch is too small for the head, or the model cannot be built.
    """
    check_numbers(world_size=world_size, micro_batch=micro_batch, num_objects=num_objects)
    layout = layout_of(strategy, world_size=world_size, shard_ranks=shard_ranks)
    _, accumulation = batch_plan(experiment.train.global_batch, world_size, micro_batch)
    images = micro_batch * experiment.data.clip_frames
    check_micro_batch(images, least=least_images(experiment, world_size, make_head))
    step = Step(
        parts=parts_of(experiment, make_head),
        measured=measure(experiment, num_objects=num_objects, device_type=device_type, make_head=make_head),
        layout=layout,
        images=images,
        accumulation=accumulation,
        state_copies=state_copies(experiment.optim),
        update_copies=update_copies(experiment.optim, is_sharded=layout.is_sharded),
    )
    library_bytes = outside_bytes = 0
    if device_type != "cpu":
        library_bytes = LIBRARY_BYTES
        outside_bytes = CONTEXT_BYTES + (0 if layout.kind == "single" else COMMUNICATOR_BYTES)
    found = _ledger_of(step, library_bytes=library_bytes, outside_bytes=outside_bytes)
    return replace(found, micro_batch=micro_batch)


def check_numbers(*, world_size: int, micro_batch: int = 1, num_objects: int = 1) -> None:
    """Raise a ConfigError if a number is not positive; objects may be 0."""
    for name, number, least in (
        ("number of workers", world_size, 1),
        ("micro-batch", micro_batch, 1),
        ("number of objects per image", num_objects, 0),
    ):
        if number < least:
            raise ConfigError(f"the {name} must be {least} or more, got {number}")


def _ledger_of(step: Step, *, library_bytes: int, outside_bytes: int) -> Ledger:
    kept = step.kept()
    moments = [_temporary_as_workspace(moment, kept, step.images) for moment in step.moments()]
    worst = max(moments, key=lambda moment: moment.rows.total())
    names = dict.fromkeys([WEIGHTS, GRADIENTS, STATE, COMMUNICATION, *kept])
    for name in (WEIGHT_COPIES, TARGETS, WORKSPACE):
        names.pop(name, None)
        names[name] = None
    rows = [_row(name, kept, moments, worst, step.images) for name in names]
    rows.append(Row(LIBRARIES, library_bytes, 0, library_bytes))
    margin_bytes = round(FRAGMENTATION * (worst.rows.total() + library_bytes)) + outside_bytes
    rows.append(Row(MARGIN, margin_bytes, 0, margin_bytes))
    return Ledger(
        layout=step.layout,
        micro_batch=step.images,
        accumulation=step.accumulation,
        moment=worst.name,
        rows=tuple(rows),
        activation_bytes=sum(line.at(step.images) for line in kept.values()),
    )


def _temporary_as_workspace(moment: Moment, kept: Mapping[str, Linear], images: int) -> Moment:
    """Move the bytes of a row that it does not keep for the backward pass to the workspace row."""
    rows = moment.rows.copy()
    for name, line in kept.items():
        temporary_bytes = rows[name] - line.at(images)
        if temporary_bytes > 0 and name not in (WEIGHT_COPIES, TARGETS):
            rows[name] -= temporary_bytes
            rows[WORKSPACE] += temporary_bytes
    return Moment(moment.name, rows)


def _row(name: str, kept: Mapping[str, Linear], moments: list[Moment], worst: Moment, images: int) -> Row:
    if name in kept and name not in (WEIGHT_COPIES, TARGETS):
        size_bytes, image_bytes = kept[name].at(images), round(kept[name].image_bytes)
    else:
        size_bytes, image_bytes = max(moment.rows[name] for moment in moments), 0
    return Row(name, size_bytes, image_bytes, worst.rows[name])
