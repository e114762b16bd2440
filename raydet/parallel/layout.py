"""The parallel layout of a run: numbers of replicas and shards, decided before anything is wrapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raydet.config import Strategy
from raydet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Layout:
    """`replicas` copies of the model, each split into `shards`; their product is the number of workers."""

    kind: Literal["single", "ddp", "fsdp", "hsdp"]
    replicas: int
    shards: int

    @property
    def is_sharded(self) -> bool:
        """Parameters are sharded; running the model takes all workers together."""
        return self.kind in ("fsdp", "hsdp")


def layout_of(
    strategy: Strategy, *, world_size: int, shard_ranks: int | None = None, ranks_per_node: int | None = None
) -> Layout:
    """The layout of a strategy for a number of workers.

    Args:
        strategy: `train.strategy`.
        world_size: workers of the run.
        shard_ranks: `train.shard_ranks`; None: `ranks_per_node`.
        ranks_per_node: workers on each node; None: all of them.

    >>> layout_of("auto", world_size=4)
    Layout(kind='ddp', replicas=4, shards=1)
    >>> layout_of("hsdp", world_size=8, ranks_per_node=4)
    Layout(kind='hsdp', replicas=2, shards=4)

    Raises:
        ConfigError: the strategy does not fit the number of workers.
    """
    if shard_ranks is not None and strategy != "hsdp":
        raise ConfigError(f"train.shard_ranks requires train.strategy=hsdp, got {strategy}; leave it null")
    if strategy == "auto":
        strategy = "single" if world_size == 1 else "ddp"
    if strategy == "single":
        if world_size > 1:
            raise ConfigError(f"train.strategy=single requires one worker, got {world_size}; use ddp or fsdp")
        return Layout("single", replicas=1, shards=1)
    if world_size == 1:
        raise ConfigError(f"train.strategy={strategy} requires several workers, got 1; use single or auto")
    match strategy:
        case "ddp":
            return Layout("ddp", replicas=world_size, shards=1)
        case "fsdp":
            return Layout("fsdp", replicas=1, shards=world_size)
        case "hsdp":
            shards = shard_ranks or ranks_per_node or world_size
            if world_size % shards:
                raise ConfigError(
                    f"train.strategy=hsdp: groups of {shards} do not divide {world_size} workers; "
                    "set train.shard_ranks to a divisor"
                )
            return Layout("hsdp", replicas=world_size // shards, shards=shards)
