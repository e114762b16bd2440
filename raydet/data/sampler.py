"""Which image is in which batch: a pure function of (seed, epoch, step), never of the number of workers.

The order of an epoch is cut into global batches, a global batch into micro-batches. With `accumulation` micro-batches
per worker, worker r takes those from r * accumulation on: one worker that accumulates two sees what two workers see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raydet.data.randomness import random_stream
from raydet.errors import ConfigError


def epoch_order(num_samples: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of 0, ..., num_samples - 1."""
    order: list[int] = random_stream(seed, epoch, "order").permutation(num_samples).tolist()
    return order


@dataclass(frozen=True, slots=True)
class ElasticSampler:
    """The batches of every epoch; the last, incomplete one of an epoch is dropped.

    Where a run stands is (seed, epoch, step of the epoch): any number of workers that divides the global batch goes on
    from there, at once, and together they see what is left of the epoch's order, each sample once.

    Raises:
        ConfigError: there are fewer samples than a global batch wants.
    """

    num_samples: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise ConfigError(
                f"train.global_batch wants {self.global_batch} images per step, the training side of the split has "
                f"{self.num_samples}; set train.global_batch to {self.num_samples} or less"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of complete global batches."""
        return self.num_samples // self.global_batch

    def of_rank(
        self, epoch: int, *, rank: int, micro_batch: int, accumulation: int, first_step: int = 0
    ) -> Iterator[list[list[int]]]:
        """For each step from `first_step` on, the micro-batches of one worker."""
        order = epoch_order(self.num_samples, seed=self.seed, epoch=epoch)
        for step in range(first_step, self.steps_per_epoch):
            first = step * self.global_batch + rank * accumulation * micro_batch
            starts = (first + slot * micro_batch for slot in range(accumulation))
            yield [order[start : start + micro_batch] for start in starts]


def batch_plan(global_batch: int, world_size: int, micro_batch: int | None) -> tuple[int, int]:
    """Images per worker in one forward pass, and forward passes per step.

    >>> batch_plan(16, 2, None)
    (8, 1)
    >>> batch_plan(16, 2, 2)
    (2, 4)

    Raises:
        ConfigError: the numbers do not divide; the nearest that do are named.
    """
    if global_batch % world_size:
        below = max(1, global_batch // world_size) * world_size
        raise ConfigError(
            f"train.global_batch {global_batch} does not divide among {world_size} workers; the nearest that do are "
            f"{below} and {below + world_size}"
        )
    share = global_batch // world_size
    micro_batch = share if micro_batch is None else micro_batch
    if share % micro_batch:
        legal = [size for size in range(1, share + 1) if share % size == 0]
        nearest = sorted(sorted(legal, key=lambda size: abs(size - micro_batch))[:2])
        raise ConfigError(
            f"train.micro_batch {micro_batch} does not divide the {share} images of each of {world_size} workers "
            f"(train.global_batch {global_batch}); the nearest that do are {' and '.join(map(str, nearest))}"
        )
    return micro_batch, share // micro_batch
