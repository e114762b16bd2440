from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydet.data.sampler import ElasticSampler, batch_plan, pass_order
from raydet.errors import ConfigError


def test_an_order_is_a_permutation_of_its_own() -> None:
    order = pass_order(50, seed=1, pass_=2)
    assert sorted(order) == list(range(50))
    assert order == pass_order(50, seed=1, pass_=2)
    assert order != pass_order(50, seed=2, pass_=2)
    assert order != pass_order(50, seed=1, pass_=3)


def test_the_order_is_frozen() -> None:
    assert pass_order(8, seed=42, pass_=0) == (7, 1, 4, 5, 6, 0, 3, 2)


@given(data=st.data(), global_batch=st.integers(1, 24), spare=st.integers(0, 60), seed=st.integers(0, 9))
def test_every_world_sees_the_same_epoch(
    data: st.DataObject, global_batch: int, spare: int, seed: int
) -> None:
    divisors = [size for size in range(1, global_batch + 1) if global_batch % size == 0]
    world_size = data.draw(st.sampled_from(divisors))
    share = global_batch // world_size
    micro_batch = data.draw(st.sampled_from([size for size in divisors if share % size == 0]))
    micro_batch, accumulation = batch_plan(global_batch, world_size, micro_batch)
    batches = ElasticSampler(num_samples=global_batch + spare, global_batch=global_batch, seed=seed)
    first_step = data.draw(st.integers(0, batches.steps_per_pass))
    start = 3 * batches.steps_per_pass
    ranks = [
        [
            [
                batches.slots(start + step, (rank * accumulation + slot) * micro_batch, micro_batch)
                for slot in range(accumulation)
            ]
            for step in range(first_step, batches.steps_per_pass)
        ]
        for rank in range(world_size)
    ]
    seen = [index for step in zip(*ranks, strict=True) for slots in step for slot in slots for index in slot]
    order = pass_order(global_batch + spare, seed=seed, pass_=3)
    assert tuple(seen) == order[first_step * global_batch : batches.steps_per_pass * global_batch]
    assert all(len(slot) == micro_batch for rank in ranks for slots in rank for slot in slots)


def test_a_pass_has_its_own_order_and_position() -> None:
    batches = ElasticSampler(num_samples=13, global_batch=4, seed=0)
    assert [batches.position(step) for step in range(5)] == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4)]
    assert batches.slots(4, 1, 2) == pass_order(13, seed=0, pass_=1)[5:7]


def test_a_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"global_batch is 16.* 10 images; set train\.global_batch to 10"):
        ElasticSampler(num_samples=10, global_batch=16, seed=0)


@pytest.mark.parametrize(
    ("plan", "result"), [((16, 1, None), (16, 1)), ((16, 4, None), (4, 1)), ((16, 4, 2), (2, 2))]
)
def test_plans(plan: tuple[int, int, int | None], result: tuple[int, int]) -> None:
    assert batch_plan(*plan) == result


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((16, 3, None), "global_batch 16 .* 3 workers; .* 15 and 18"),
        ((3, 4, None), "global_batch 3 .* 4 workers; .* 4 and 8"),
        ((24, 2, 5), "micro_batch 5 .* 12 images .* 4 and 6"),
        ((8, 2, 16), "micro_batch 16 .* 4 images .* 2 and 4"),
    ],
)
def test_an_impossible_plan_names_the_nearest(plan: tuple[int, int, int | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batch_plan(*plan)
