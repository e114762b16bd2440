"""Settings that help after an out-of-memory error, with their predicted savings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raydet.config import Experiment, SGDConfig, Strategy
from raydet.models.heads.base import DeviceType
from raydet.plan.fit import micro_batches, with_train
from raydet.plan.ledger import DEFAULT_OBJECTS, ledger

NUM_REMEDIES = 3
CANVAS_STEP_PX = 32


@dataclass(frozen=True, slots=True)
class Remedy:
    """A setting to change, and the predicted saving of one rank's peak."""

    text: str
    saving_bytes: int


@dataclass(frozen=True, slots=True)
class _Change:
    text: str
    experiment: Experiment
    strategy: Strategy
    micro_batch: int


def remedies(
    experiment: Experiment,
    *,
    world_size: int,
    strategy: Strategy,
    micro_batch: int,
    num_objects: int = DEFAULT_OBJECTS,
    device_type: DeviceType = "cuda",
) -> list[Remedy]:
    """At most three settings that would help, the largest saving first.

    Raises:
        ConfigError: see `ledger`.
    """

    def peak_bytes(experiment: Experiment, strategy: Strategy, micro_batch: int) -> int:
        return ledger(
            experiment,
            world_size=world_size,
            strategy=strategy,
            micro_batch=micro_batch,
            shard_ranks=experiment.train.shard_ranks if strategy == "hsdp" else None,
            num_objects=num_objects,
            device_type=device_type,
        ).peak_bytes

    now_bytes = peak_bytes(experiment, strategy, micro_batch)
    found = [
        Remedy(change.text, now_bytes - peak_bytes(change.experiment, change.strategy, change.micro_batch))
        for change in _changes(experiment, world_size, strategy, micro_batch)
    ]
    helpful = [remedy for remedy in found if remedy.saving_bytes > 0]
    return sorted(helpful, key=lambda remedy: -remedy.saving_bytes)[:NUM_REMEDIES]


def _changes(
    experiment: Experiment, world_size: int, strategy: Strategy, micro_batch: int
) -> Iterator[_Change]:
    train = experiment.train
    if train.activation_checkpointing != "block":
        recomputing = with_train(experiment, activation_checkpointing="block")
        yield _Change("train.activation_checkpointing=block", recomputing, strategy, micro_batch)
    if train.precision == "fp32":
        yield _Change("train.precision=bf16", with_train(experiment, precision="bf16"), strategy, micro_batch)
    halves = [size for size in micro_batches(experiment, world_size) if size <= micro_batch // 2]
    if halves:
        text = f"train.micro_batch={halves[0]} (accumulation follows; the global batch stays {train.global_batch})"
        yield _Change(text, experiment, strategy, halves[0])
    if world_size > 1 and strategy != "fsdp":
        yield _Change("train.strategy=fsdp", experiment, "fsdp", micro_batch)
    height, width = (
        max(CANVAS_STEP_PX, side * 3 // 4 // CANVAS_STEP_PX * CANVAS_STEP_PX)
        for side in experiment.data.canvas_hw
    )
    data = experiment.data.model_copy(update={"canvas_hw": (height, width)})
    smaller_canvas = experiment.model_copy(update={"data": data})
    text = f"data.canvas_hw=[{height},{width}] (changes the result)"
    yield _Change(text, smaller_canvas, strategy, micro_batch)
    if not isinstance(experiment.optim, SGDConfig):
        with_sgd = experiment.model_copy(update={"optim": SGDConfig()})
        yield _Change("optim.kind=sgd (changes the result)", with_sgd, strategy, micro_batch)
