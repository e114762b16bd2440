from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from raydet.data.digest import EMPTY, as_lanes, as_text, digest_of, expected_digest
from raydet.data.sampler import ElasticSampler, pass_order

GLOBAL_BATCH = 12
WORLD_SIZES = (1, 2, 3, 4, 6, 12)
IDS = [f"image {index}" for index in range(100)]


@st.composite
def attempts(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Workers of each attempt, steps it comes to, and how many of the last ones no checkpoint holds."""
    size = st.sampled_from(WORLD_SIZES)
    return draw(st.lists(st.tuples(size, st.integers(0, 9), st.integers(0, 3)), max_size=8))


@settings(max_examples=200)
@given(attempts=attempts(), num_samples=st.integers(12, 100), seed=st.integers(0, 5))
def test_kills_and_other_numbers_of_workers_lose_and_repeat_no_sample(
    attempts: list[tuple[int, int, int]], num_samples: int, seed: int
) -> None:
    sampler = ElasticSampler(num_samples=num_samples, global_batch=GLOBAL_BATCH, seed=seed)
    total = 3 * sampler.steps_per_pass
    saved_step, saved_lanes, saved_seen = 0, as_lanes(EMPTY), list[tuple[int, int]]()
    for world_size, num_steps, lost in [*attempts, (2, total, 0)]:
        step, lanes, seen = saved_step, saved_lanes, list(saved_seen)
        keep_at = min(total, step + num_steps) - lost
        while step < min(total, saved_step + num_steps):
            for rank in range(world_size):
                share = GLOBAL_BATCH // world_size
                indices = sampler.slots(step, rank * share, share)
                epoch, first = sampler.position(step)
                lanes = lanes + digest_of(epoch, first + rank * share, [IDS[index] for index in indices])
                seen += [(epoch, index) for index in indices]
            step += 1
            if step == keep_at:  # the last checkpoint before the kill
                checkpoint = step, lanes, list(seen)
        if keep_at > saved_step:
            saved_step, saved_lanes, saved_seen = checkpoint
    assert saved_step == total
    per_epoch = sampler.steps_per_pass * GLOBAL_BATCH
    assert saved_seen == [
        (epoch, index)
        for epoch in range(3)
        for index in pass_order(num_samples, seed=seed, pass_=epoch)[:per_epoch]
    ]
    assert as_text(saved_lanes) == expected_digest(sampler, IDS, steps=total)


def test_every_change_changes_the_digest() -> None:
    digests = {
        as_text(digest_of(epoch, first, ids))
        for epoch, first, ids in [
            (0, 0, ["a", "b"]),
            (1, 0, ["a", "b"]),
            (0, 1, ["a", "b"]),
            (0, 0, ["b", "a"]),
            (0, 0, ["a"]),
            (0, 0, ["a", "b", "b"]),
            (0, 0, []),
        ]
    }
    assert len(digests) == 7
    assert EMPTY in digests


def test_the_digest_is_frozen() -> None:
    # one sample: its hash as it is
    assert as_text(digest_of(2, 5, ["x"])) == hashlib.sha256(b"2\n5\nx").hexdigest()
    assert as_text(as_lanes("ab" * 32)) == "ab" * 32
