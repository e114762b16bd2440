"""How many workers a run may have, and how many of them find a place now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Resources = Mapping[str, float]


def legal_sizes(global_batch: int, micro_batch: int | None, *, fewest: int, most: int) -> list[int]:
    """Numbers of workers that share the global batch in whole micro-batches, largest first.

    Args:
        micro_batch: None: what `most` workers would each take at once.

    >>> legal_sizes(12, 1, fewest=2, most=6)
    [6, 4, 3, 2]
    >>> legal_sizes(16, None, fewest=1, most=4)
    [4, 2, 1]
    """
    num_slots = most if micro_batch is None else global_batch // micro_batch
    return [size for size in range(most, fewest - 1, -1) if num_slots % size == 0]


def fitting_size(sizes: Sequence[int], nodes: Sequence[Resources], worker: Resources) -> int | None:
    """The first of `sizes` for which every worker finds a place, each on one node; None: not even the last does.

    >>> fitting_size([4, 2, 1], [{"CPU": 1}, {"CPU": 2}], {"CPU": 1})
    2
    """
    places = sum(
        min(int(node.get(name, 0) // amount) for name, amount in worker.items() if amount) for node in nodes
    )
    return next((size for size in sizes if size <= places), None)
