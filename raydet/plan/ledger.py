"""One rank's memory during a training step, row by row, at the worst moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raydet.config import Experiment, Strategy
from raydet.data.sampler import batch_plan
from raydet.errors import ConfigError
from raydet.parallel.layout import Layout, layout_of
from raydet.plan.counts import parts_of, state_copies, update_copies
from raydet.plan.heads import TARGETS, DeviceType
from raydet.plan.measure import GRADIENTS, WEIGHT_COPIES, WORKSPACE, Linear, measure
from raydet.plan.moments import COMMUNICATION, STATE, WEIGHTS, Moment, Step
from raydet.plan.sizes import MIB

LIBRARIES = "library workspaces"
MARGIN = "margin"

DEFAULT_OBJECTS = 50
"""Ground truths per image, where nothing is said: more than most data sets have."""

FRAGMENTATION = 0.05
"""Share of the live bytes that the caching allocator loses to rounding and gaps. A judgement, not a measurement."""
LIBRARY_BYTES = 512 * MIB
"""What cuBLAS and cuDNN allocate beside the tensors. Fitted: with it the plan is within 2 % of nine steps that were
measured on an H100, from 4.8 to 49.6 GiB, all of 16 images (BENCHMARKS.md)."""
CONTEXT_BYTES = 768 * MIB
"""What a process takes beside its allocations: CUDA context, kernels. A judgement, too."""
COMMUNICATOR_BYTES = 256 * MIB
"""NCCL's own buffers, where there are several ranks."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of memory."""

    name: str
    bytes: int
    """At its largest; of activations: what the backward pass needs when the forward pass is over."""
    image_bytes: int
    """How much of `bytes` each image of a micro-batch adds."""
    peak_bytes: int
    """Alive at the worst moment of the step."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The memory of one rank."""

    layout: Layout
    micro_batch: int
    accumulation: int
    """Micro-batches per step."""
    moment: str
    """When the peak comes."""
    rows: tuple[Row, ...]
    activation_bytes: int
    """What autograd keeps for the backward pass, when the forward pass is over."""

    @property
    def peak_bytes(self) -> int:
        """The memory that the device must have."""
        return sum(row.peak_bytes for row in self.rows)

    @property
    def allocated_bytes(self) -> int:
        """What `torch.cuda.max_memory_allocated` tells."""
        return self.peak_bytes - self.bytes_of(MARGIN)

    def bytes_of(self, name: str) -> int:
        """A row at its largest; 0 where there is no such row."""
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
) -> Ledger:
    """What one rank needs. The first call for a model measures it (about two seconds), further ones only add up.

    Args:
        experiment: its own strategy and micro-batch do not count.
        world_size: ranks that share the global batch.
        strategy: as `train.strategy`.
        micro_batch: images of one rank in one forward pass; accumulation follows from the global batch.
        shard_ranks: as `train.shard_ranks`.
        num_objects: ground truths per image in the worst batch.
        device_type: on a CPU the head uses other kernels, and there is no CUDA context.

    Raises:
        ConfigError: a number is not positive, the batch does not divide, the strategy does not fit the ranks, or the
            model cannot be built.
    """
    check_numbers(world_size=world_size, micro_batch=micro_batch, num_objects=num_objects)
    layout = layout_of(strategy, world_size=world_size, shard_ranks=shard_ranks)
    _, accumulation = batch_plan(experiment.train.global_batch, world_size, micro_batch)
    step = Step(
        parts=parts_of(experiment),
        measured=measure(experiment, num_objects=num_objects, device_type=device_type),
        layout=layout,
        images=micro_batch,
        accumulation=accumulation,
        state_copies=state_copies(experiment.optim),
        update_copies=update_copies(experiment.optim, is_sharded=layout.is_sharded),
    )
    return _ledger_of(
        step,
        library_bytes=LIBRARY_BYTES if device_type == "cuda" else 0,
        outside_bytes=_outside_bytes(layout, device_type),
    )


def check_numbers(*, world_size: int, micro_batch: int = 1, num_objects: int = 1) -> None:
    """Raises:
    ConfigError: a count is not positive (objects may be 0).
    """
    for name, number, least in (
        ("number of workers", world_size, 1),
        ("micro-batch", micro_batch, 1),
        ("number of objects per image", num_objects, 0),
    ):
        if number < least:
            raise ConfigError(f"the {name} wants {least} or more, got {number}")


def _outside_bytes(layout: Layout, device_type: DeviceType) -> int:
    if device_type == "cpu":
        return 0
    return CONTEXT_BYTES + (0 if layout.kind == "single" else COMMUNICATOR_BYTES)


def _ledger_of(step: Step, *, library_bytes: int, outside_bytes: int) -> Ledger:
    kept = step.kept()
    moments = [_settled(moment, kept, step.images) for moment in step.moments()]
    worst = max(moments, key=lambda moment: moment.rows.total())
    names = dict.fromkeys([WEIGHTS, GRADIENTS, STATE, COMMUNICATION, *kept])
    for name in (WEIGHT_COPIES, TARGETS, WORKSPACE):
        names.pop(name, None)
        names[name] = None
    rows = [_row(name, kept, moments, worst, step.images) for name in names]
    margin_bytes = round(FRAGMENTATION * (worst.rows.total() + library_bytes)) + outside_bytes
    rows += [
        Row(name, size_bytes, 0, size_bytes)
        for name, size_bytes in ((LIBRARIES, library_bytes), (MARGIN, margin_bytes))
    ]
    return Ledger(
        layout=step.layout,
        micro_batch=step.images,
        accumulation=step.accumulation,
        moment=worst.name,
        rows=tuple(rows),
        activation_bytes=sum(line.at(step.images) for line in kept.values()),
    )


def _settled(moment: Moment, kept: Mapping[str, Linear], images: int) -> Moment:
    """Whatever a part of the model holds beyond what it keeps is temporary: workspace."""
    rows = moment.rows.copy()
    for name, line in kept.items():
        beyond_bytes = rows[name] - line.at(images)
        if beyond_bytes > 0 and name not in (WEIGHT_COPIES, TARGETS):
            rows[name] -= beyond_bytes
            rows[WORKSPACE] += beyond_bytes
    return Moment(moment.name, rows)


def _row(name: str, kept: Mapping[str, Linear], moments: list[Moment], worst: Moment, images: int) -> Row:
    if name in kept and name not in (WEIGHT_COPIES, TARGETS):
        size_bytes, image_bytes = kept[name].at(images), round(kept[name].image_bytes)
    else:
        size_bytes, image_bytes = max(moment.rows[name] for moment in moments), 0
    return Row(name, size_bytes, image_bytes, worst.rows[name])
