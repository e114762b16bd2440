"""Random numbers that depend on what they are for, and on nothing else.

A key such as (seed, epoch, image id) names its own stream, so neither the number of workers nor the order of calls
changes a draw. `RandomState` is used on purpose: numpy has frozen its streams for good, while those of the newer
`Generator` may change between releases.
"""

from __future__ import annotations

import hashlib

import numpy as np


def random_stream(*key: int | str) -> np.random.RandomState:
    """The stream of a key.

    >>> random_stream(0, "a").randint(100) == random_stream(0, "a").randint(100)
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4").astype(np.uint32))
