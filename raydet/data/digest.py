"""Which samples a run has trained on, as one number that anyone can check.

An adding multiset hash (Clarke et al., ASIACRYPT 2003): the sum of sha256(pass, position, image) over all samples,
in four lanes modulo 2^64. Sums do not depend on the order, so every worker adds up its own part, and no history is
kept; a sample that is missing, repeated or in another place changes the sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydet.data.sampler import ElasticSampler, pass_order

Lanes = NDArray[np.uint64]

EMPTY = "0" * 64
"""The digest of no samples."""


def digest_of(pass_: int, first: int, image_ids: Sequence[str]) -> Lanes:
    """The sum over samples at positions `first`, `first + 1`, ... of a pass's order.

    Args:
        pass_: counted from 0.

    Returns:
        uint64 [4].
    """
    lanes = np.zeros(4, dtype=np.uint64)
    for position, image_id in enumerate(image_ids, start=first):
        content = hashlib.sha256(f"{pass_}\n{position}\n{image_id}".encode()).digest()
        lanes += np.frombuffer(content, dtype="<u8")
    return lanes


def as_text(lanes: Lanes) -> str:
    """64 hexadecimal digits."""
    return lanes.astype("<u8").tobytes().hex()


def as_lanes(text: str) -> Lanes:
    """What `as_text` gave."""
    return np.frombuffer(bytes.fromhex(text), dtype="<u8").astype(np.uint64)


def expected_digest(sampler: ElasticSampler, image_ids: Sequence[str], *, steps: int) -> str:
    """The digest of a run that has seen every sample of its first `steps` steps once, in its place.

    Args:
        image_ids: of all training images, in the order of the split.
    """
    lanes = np.zeros(4, dtype=np.uint64)
    passes, rest = divmod(steps, sampler.steps_per_pass)
    for pass_ in range(passes + 1):
        num_steps = sampler.steps_per_pass if pass_ < passes else rest
        order = pass_order(sampler.num_samples, seed=sampler.seed, pass_=pass_)
        seen = order[: num_steps * sampler.global_batch]
        lanes += digest_of(pass_, 0, [image_ids[index] for index in seen])
    return as_text(lanes)
