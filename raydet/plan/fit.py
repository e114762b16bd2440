"""The largest micro-batch that fits, the recommendation, and the table over backbones and strategies.

The global batch never changes: a smaller micro-batch means more accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from raydet.config import ActivationCheckpointing, Experiment, MiTConfig, MiTVariant, Strategy
from raydet.data.sampler import batch_plan
from raydet.models.build import MakeHead
from raydet.models.heads.base import DeviceType, check_micro_batch
from raydet.plan.counts import least_images
from raydet.plan.ledger import DEFAULT_OBJECTS, Ledger, check_numbers, ledger
from raydet.plan.sizes import format_bytes

BACKBONES: tuple[MiTVariant, ...] = tuple(name for name in get_args(MiTVariant) if name != "nano")

# Costs as fractions of a step's time. The last two are estimates.
RECOMPUTE_COST = 1 / 3
"""The forward pass, a third of a step, runs twice."""
SHARDING_COST = 0.1
"""Gathering parameters without overlap with computation."""
SMALL_BATCH_COST = 0.5
"""Divided by the images of a micro-batch: small kernels do not fill a GPU."""


@dataclass(frozen=True, slots=True)
class Option:
    """A strategy and checkpointing mode, and the largest micro-batch that fits."""

    strategy: Strategy
    activation_checkpointing: ActivationCheckpointing
    micro_batch: int | None
    """The largest that fits, or None if not even one image does."""
    ledger: Ledger
    """For that micro-batch, or for one image."""

    @property
    def cost(self) -> float:
        """Time per image relative to an ideal step; for ranking only, not a prediction."""
        return (
            1.0
            + (RECOMPUTE_COST if self.activation_checkpointing != "none" else 0.0)
            + (SHARDING_COST if self.ledger.layout.is_sharded else 0.0)
            + SMALL_BATCH_COST / self.ledger.micro_batch
        )


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The best option with its reason, or the one with the smallest peak if nothing fits."""

    option: Option
    reason: str

    @property
    def fits(self) -> bool:
        return self.option.micro_batch is not None

    @property
    def settings(self) -> tuple[str, ...]:
        """Arguments for `--set`."""
        return (
            f"train.strategy={self.option.strategy}",
            f"train.activation_checkpointing={self.option.activation_checkpointing}",
            f"train.micro_batch={self.option.ledger.micro_batch}",
        )


def divisors(number: int) -> list[int]:
    """All divisors, the largest first.

    >>> divisors(12)
    [12, 6, 4, 3, 2, 1]
    """
    return [size for size in range(number, 0, -1) if number % size == 0]


def rank_share(experiment: Experiment, world_size: int) -> int:
    """Images per rank and step.

    Raises:
        ConfigError: the global batch does not divide among the ranks.
    """
    check_numbers(world_size=world_size)
    micro_batch, accumulation = batch_plan(experiment.train.global_batch, world_size, None)
    return micro_batch * accumulation


def micro_batches(experiment: Experiment, world_size: int, make_head: MakeHead | None = None) -> list[int]:
    """The divisors of the rank's share that the head can be trained with, the largest first.

    Raises:
        ConfigError: the global batch does not divide among the ranks, or the share is too small for the head.
    """
    share, least = rank_share(experiment, world_size), least_images(experiment, world_size, make_head)
    check_micro_batch(share, least=least)
    return [size for size in divisors(share) if size >= least]


def largest_micro_batch(
    experiment: Experiment,
    *,
    world_size: int,
    strategy: Strategy,
    memory_bytes: int,
    num_objects: int = DEFAULT_OBJECTS,
    device_type: DeviceType = "cuda",
    make_head: MakeHead | None = None,
) -> int | None:
    """The largest divisor of the rank's share of the global batch that fits; None if not even one image does.

    Raises:
        ConfigError: see `ledger`.
    """
    return _option(
        experiment, world_size, strategy, memory_bytes, num_objects, device_type, make_head
    ).micro_batch


def recommend(
    experiment: Experiment,
    *,
    world_size: int,
    memory_bytes: int,
    num_objects: int = DEFAULT_OBJECTS,
    make_head: MakeHead | None = None,
) -> Recommendation:
    """The option with the lowest `Option.cost` that fits; precision and global batch are kept.

    Args:
        make_head: see `raydet.models.build.build_model`.

    Raises:
        ConfigError: see `ledger`.
    """
    share = rank_share(experiment, world_size)
    seen: list[Option] = []
    for option in _options(experiment, world_size, memory_bytes, num_objects, make_head):
        seen.append(option)
        if option.micro_batch == share:
            break  # all further options cost more
    fitting = [option for option in seen if option.micro_batch is not None]
    if not fitting:
        smallest = min(seen, key=lambda option: option.ledger.peak_bytes)
        needed = format_bytes(smallest.ledger.peak_bytes)
        return Recommendation(
            smallest,
            f"nothing fits: even one image at a time needs {needed}; use a smaller canvas or backbone, bf16, or more "
            "memory",
        )
    best = min(fitting, key=lambda option: option.cost)
    return Recommendation(best, _reason(best, seen, share))


def fit_table(
    experiment: Experiment,
    *,
    world_size: int,
    memory_bytes: int,
    num_objects: int = DEFAULT_OBJECTS,
    backbones: Sequence[MiTVariant] = BACKBONES,
) -> list[tuple[str, Option]]:
    """Every strategy for every MiT, and for the experiment's own backbone if it is not a MiT.

    Raises:
        ConfigError: see `ledger`.
    """
    own = [] if isinstance(experiment.model.backbone, MiTConfig) else [experiment]
    return [
        (candidate.model.backbone.label, option)
        for candidate in (*own, *(_with_backbone(experiment, variant) for variant in backbones))
        for option in _options(candidate, world_size, memory_bytes, num_objects)
    ]


def _options(
    experiment: Experiment,
    world_size: int,
    memory_bytes: int,
    num_objects: int,
    make_head: MakeHead | None = None,
) -> Iterator[Option]:
    """Options in increasing order of cost at equal micro-batch."""
    strategies: tuple[Strategy, ...] = ("single",) if world_size == 1 else ("ddp", "fsdp")
    for mode in ("none", "block"):
        changed = with_train(experiment, activation_checkpointing=mode)
        for strategy in strategies:
            yield _option(changed, world_size, strategy, memory_bytes, num_objects, make_head=make_head)


def _option(
    experiment: Experiment,
    world_size: int,
    strategy: Strategy,
    memory_bytes: int,
    num_objects: int,
    device_type: DeviceType = "cuda",
    make_head: MakeHead | None = None,
) -> Option:
    mode = experiment.train.activation_checkpointing
    for micro_batch in micro_batches(experiment, world_size, make_head):
        found = ledger(
            experiment,
            world_size=world_size,
            strategy=strategy,
            micro_batch=micro_batch,
            shard_ranks=experiment.train.shard_ranks if strategy == "hsdp" else None,
            num_objects=num_objects,
            device_type=device_type,
            make_head=make_head,
        )
        if found.peak_bytes <= memory_bytes:
            return Option(strategy, mode, micro_batch, found)
    return Option(strategy, mode, None, found)


def _reason(best: Option, seen: Sequence[Option], share: int) -> str:
    sharding = "sharding frees memory that activations need; " if best.ledger.layout.is_sharded else ""
    if best.activation_checkpointing != "none":
        most = f"at most {seen[0].micro_batch}" if seen[0].micro_batch else "not even one"
        return (
            f"{sharding}without recomputing activations {most} of {share} images would fit at once, and steps would "
            "be slower"
        )
    micro_batch = best.ledger.micro_batch
    if micro_batch < share:
        accumulation = f"{share // micro_batch} micro-batches of {micro_batch}"
        return f"{sharding}{accumulation} cost less time than recomputing activations"
    return f"{sharding}all images fit at once, nothing needs to be recomputed"


def with_train(experiment: Experiment, **changes: object) -> Experiment:
    """The experiment with other settings under `train`, which are not validated."""
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=changes)})


def _with_backbone(experiment: Experiment, variant: MiTVariant) -> Experiment:
    backbone = experiment.model.backbone
    is_mit = isinstance(backbone, MiTConfig)
    backbone = backbone.model_copy(update={"variant": variant}) if is_mit else MiTConfig(variant=variant)
    model = experiment.model.model_copy(update={"backbone": backbone})
    return experiment.model_copy(update={"model": model})
