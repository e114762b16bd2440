"""Random numbers that depend on a key and nothing else.

A key such as (seed, epoch, image id) has its own stream, so neither the number of workers nor the order of calls
changes a draw. Only what numpy has frozen is used: `RandomState` and the raw bits of PCG64. The streams of the newer
`Generator` may change between releases.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Key = int | str


def random_stream(*key: Key) -> np.random.RandomState:
    """The stream of a key, for draws from common distributions.

    >>> random_stream(0, "a").randint(100) == random_stream(0, "a").randint(100)
    True
    """
    return np.random.RandomState(_words(key))


def random_bits(*key: Key) -> np.random.PCG64:
    """The stream of a key as 64-bit words (`random_raw`), which are several times faster for whole images."""
    return np.random.PCG64(np.random.SeedSequence(_words(key).tolist()))


class Draws:
    """Uniform random integers from the stream of a key."""

    def __init__(self, *key: int | str) -> None:
        self._bits = random_bits(*key)

    def integer(self, low: int, high: int) -> int:
        """An integer in low..high, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in so many of a hundred cases."""
        return self.integer(0, 99) < percent

    def sign(self) -> int:
        """1 or -1."""
        return 1 if self.chance(50) else -1

    def bytes(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """Values in 0..255."""
        count = int(np.prod(shape))
        words = self._bits.random_raw(count // 8 + 1).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape).astype(np.int32)


def _words(key: tuple[Key, ...]) -> NDArray[np.uint32]:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.uint32)
