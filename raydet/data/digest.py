"""Which samples a run has trained on, as one number that anyone can check.

An adding multiset hash (Clarke et al., ASIACRYPT 2003): the sum of sha256(pass, position, sample) over all samples,
in four lanes modulo 2^64. A sample is an image, or a clip with all of its frames. Sums do not depend on the order, so
every worker adds up its own part, and no history is kept; a sample that is missing, repeated or in another place
changes the sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydet.data.clips import ClipSampler, sequences_of
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


def sample_names(image_ids: Sequence[str], clip_frames: int) -> list[str]:
    """The samples of a batch: its images, or its clips.

    >>> sample_names(["a0", "b0", "a1", "b1"], clip_frames=2)
    ['a0\\na1', 'b0\\nb1']
    """
    num_clips = len(image_ids) // clip_frames
    return ["\n".join(image_ids[clip::num_clips]) for clip in range(num_clips)]


def expected_digest(
    sampler: ElasticSampler | ClipSampler,
    image_ids: Sequence[str],
    *,
    steps: int,
    group_ids: Sequence[str] = (),
) -> str:
    """The digest of a run that has seen every sample of its first `steps` steps once, in its place.

    Args:
        image_ids: of all training images, in the order of the split.
        group_ids: their sequences; for clips only.
    """
    lanes = np.zeros(4, dtype=np.uint64)
    if isinstance(sampler, ClipSampler):
        sequences = sequences_of(group_ids)
        for step in range(steps):
            windows = [sampler.window(step, lane) for lane in range(sampler.global_batch)]
            ids = [
                image_ids[sequences[window.sequence][window.first_frame + frame]]
                for frame in range(sampler.clip_frames)
                for window in windows
            ]
            lanes += digest_of(*sampler.position(step), sample_names(ids, sampler.clip_frames))
        return as_text(lanes)
    passes, rest = divmod(steps, sampler.steps_per_pass)
    for pass_ in range(passes + 1):
        num_steps = sampler.steps_per_pass if pass_ < passes else rest
        order = pass_order(sampler.num_samples, seed=sampler.seed, pass_=pass_)
        seen = order[: num_steps * sampler.global_batch]
        lanes += digest_of(pass_, 0, [image_ids[index] for index in seen])
    return as_text(lanes)
