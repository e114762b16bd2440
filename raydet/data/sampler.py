"""Which image is in which batch: a pure function of (seed, step), never of the number of workers.

A pass goes once through the data in an order of its own. The order is cut into global batches, whose places are slots;
a global batch is cut into micro-batches. With `accumulation` micro-batches per worker, worker r takes those from
r * accumulation on: one worker that accumulates two sees what two workers see.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from raydet.data.randomness import random_stream
from raydet.errors import ConfigError


@lru_cache(maxsize=2)
def pass_order(num_samples: int, *, seed: int, pass_: int) -> tuple[int, ...]:
    """A permutation of 0, ..., num_samples - 1."""
    return tuple(random_stream(seed, pass_, "order").permutation(num_samples).tolist())


@dataclass(frozen=True, slots=True)
class ElasticSampler:
    """The batches of every step; the last, incomplete batch of a pass is dropped.

    A run has reached (seed, step): any number of workers that divides the global batch resumes from there, at once, and
    together they see what is left of the pass, each sample once.

    Raises:
        ConfigError: there are fewer samples than a global batch needs.
    """

    num_samples: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < self.global_batch:
            raise ConfigError(
                f"train.global_batch is {self.global_batch}, the training side of the split has only "
                f"{self.num_samples} images; set train.global_batch to {self.num_samples} or less"
            )

    @property
    def steps_per_pass(self) -> int:
        return self.num_samples // self.global_batch

    def slots(self, step: int, first: int, count: int) -> tuple[int, ...]:
        """What a step of the run reads in its slots from `first` on: positions in the training set."""
        pass_, start = self.position(step)
        order = pass_order(self.num_samples, seed=self.seed, pass_=pass_)
        return order[start + first : start + first + count]

    def position(self, step: int) -> tuple[int, int]:
        """The pass that a step of the run belongs to, and where its global batch begins in the order of the pass."""
        pass_, step_of_pass = divmod(step, self.steps_per_pass)
        return pass_, step_of_pass * self.global_batch


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
