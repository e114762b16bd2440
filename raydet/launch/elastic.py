"""How many workers a run may have, and how many of them find a place now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raydet.config import TrainConfig
from raydet.errors import ConfigError
from raydet.parallel.layout import layout_of

Resources = Mapping[str, float]


def legal_sizes(train: TrainConfig, *, fewest: int, most: int) -> list[int]:
    """Numbers of workers that share the global batch in whole micro-batches, and suit the strategy; largest first.

    >>> legal_sizes(TrainConfig(global_batch=12, micro_batch=1), fewest=2, most=6)
    [6, 4, 3, 2]
    >>> legal_sizes(TrainConfig(global_batch=16, strategy="ddp"), fewest=1, most=4)
    [4, 2]
    """
    # Where it is not set, the micro-batch is what `most` workers each take at once.
    num_slots = train.global_batch // train.micro_batch if isinstance(train.micro_batch, int) else most
    return [size for size in range(most, fewest - 1, -1) if num_slots % size == 0 and _suits(train, size)]


def _suits(train: TrainConfig, size: int) -> bool:
    try:
        layout_of(train.strategy, world_size=size, shard_ranks=train.shard_ranks)
    except ConfigError:
        return False
    return True


def fitting_size(sizes: Sequence[int], nodes: Sequence[Resources], worker: Resources) -> int | None:
    """The first of `sizes` for which every worker finds a place, each on one node; None: not even the last does.

    >>> fitting_size([4, 2, 1], [{"CPU": 1}, {"CPU": 2}], {"CPU": 1})
    2
    """
    places = sum(room(node, worker) for node in nodes)
    return next((size for size in sizes if size <= places), None)


def larger_size(
    sizes: Sequence[int], free: Sequence[Resources], worker: Resources, *, placed: int
) -> int | None:
    """The first of `sizes` above `placed` for which there is room beside all else that runs; None: there is none.

    Args:
        free: what nobody uses, by node.
        placed: workers that the run has.

    >>> larger_size([4, 2, 1], [{"CPU": 1}, {"CPU": 0}], {"CPU": 1}, placed=1)
    2
    """
    most = placed + sum(room(node, worker) for node in free)
    return next((size for size in sizes if placed < size <= most), None)


def room(node: Resources, worker: Resources) -> int:
    """How many workers find a place on a node."""
    return min(int(node.get(name, 0) // amount) for name, amount in worker.items() if amount)
