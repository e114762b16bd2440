"""How many workers a run may have, and how many of them fit into the cluster now."""

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
    # If it is not set, the micro-batch is what each of `most` workers takes per step.
    num_micro_batches = (
        train.global_batch // train.micro_batch if isinstance(train.micro_batch, int) else most
    )
    sizes = range(most, fewest - 1, -1)
    return [size for size in sizes if num_micro_batches % size == 0 and _suits_strategy(train, size)]


def _suits_strategy(train: TrainConfig, size: int) -> bool:
    try:
        layout_of(train.strategy, world_size=size, shard_ranks=train.shard_ranks)
    except ConfigError:
        return False
    return True


def fitting_size(sizes: Sequence[int], nodes: Sequence[Resources], worker: Resources) -> int | None:
    """The first of `sizes` whose workers all fit, each on one node; None: none of them does.

    >>> fitting_size([4, 2, 1], [{"CPU": 1}, {"CPU": 2}], {"CPU": 1})
    2
    """
    slots = sum(slots_on(node, worker) for node in nodes)
    return next((size for size in sizes if size <= slots), None)


def larger_size(
    sizes: Sequence[int], free: Sequence[Resources], worker: Resources, *, current: int
) -> int | None:
    """The first of `sizes` above `current` that fits beside everything else that runs; None: none does.

    Args:
        free: unused resources, by node.
        current: workers that the run has.

    >>> larger_size([4, 2, 1], [{"CPU": 1}, {"CPU": 0}], {"CPU": 1}, current=1)
    2
    """
    most = current + sum(slots_on(node, worker) for node in free)
    return next((size for size in sizes if current < size <= most), None)


def slots_on(node: Resources, worker: Resources) -> int:
    return min(int(node.get(name, 0) // amount) for name, amount in worker.items() if amount)
