"""The ledger's arithmetic: exact counts, shards, strategies, accumulation, bad input."""

from __future__ import annotations

import pytest
import torch

from raydet.config import Strategy, apply_overrides
from raydet.engine.optim import build_optimizer
from raydet.errors import ConfigError
from raydet.models.build import build_model
from raydet.parallel.layout import layout_of
from raydet.plan.counts import PARAMETER_BYTES, Part, parts_of, state_copies, update_copies
from raydet.plan.ledger import COMMUNICATOR_BYTES, CONTEXT_BYTES, FRAGMENTATION, Ledger, ledger
from raydet.plan.live import LiveBytes, Tag
from raydet.plan.measure import Linear, Measurement, _measure
from raydet.plan.moments import Step
from raydet.recipes import recipe

DEMO = recipe("demo")


def demo_ledger(strategy: Strategy = "single", world_size: int = 1, micro_batch: int = 8) -> Ledger:
    return ledger(DEMO, world_size=world_size, strategy=strategy, micro_batch=micro_batch)


# --- counts


@pytest.mark.parametrize(
    "overrides", [{}, {"optim": {"kind": "sgd"}}, {"optim": {"kind": "sgd", "momentum": 0.0}}]
)
def test_weights_gradients_and_state_are_exact(overrides: dict[str, object]) -> None:
    run = apply_overrides(DEMO, overrides)
    detector = build_model(run)
    optimizer = build_optimizer(run.optim, detector.parameters())
    for parameter in detector.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    found = ledger(run, world_size=1, strategy="single", micro_batch=8)
    weights_bytes = sum(parameter.nbytes for parameter in detector.parameters())
    assert found.bytes_of("weights") == found.bytes_of("gradients") == weights_bytes
    tensors = [x for state in optimizer.state.values() for x in state.values() if x is not None]
    # AdamW's step counts are a few bytes per parameter.
    assert found.bytes_of("optimizer state") == sum(x.nbytes for x in tensors if x.ndim)


def test_published_parameter_counts() -> None:
    totals = {"b0": 27_786_433, "b1": 60_014_945, "b4": 155_397_473, "b5": 196_598_113}
    for name, total in totals.items():
        parts = parts_of(recipe(f"rgbte_mit_{name}"))
        assert sum(part.whole_bytes for part in parts) == total * PARAMETER_BYTES
    counts = {part.scope: part.count for part in parts_of(recipe("rgbte_mit_b5")) if part.count > 1}
    assert counts == {
        f"stage {stage} {stream}, block": depth
        for stage, depth in enumerate((3, 6, 40, 3), 1)
        for stream in ("rgb", "aux")
    }


def test_shards_are_padded_rows() -> None:
    part = Part("x", shapes=((10, 3), (2,)), count=2)
    assert part.unit_bytes == 4 * 32
    assert part.whole_bytes == 2 * 4 * 32
    assert part.shard_bytes(1) == part.whole_bytes
    assert part.shard_bytes(4) == 2 * 4 * (3 * 3 + 1)


def test_copies_of_the_optimizer() -> None:
    sgd, adamw = recipe("rgbte_mit_b0").optim, DEMO.optim
    assert [state_copies(sgd), state_copies(adamw)] == [1, 2]
    averaged = [optim.model_copy(update={"ema_decay": 0.999}) for optim in (sgd, adamw)]
    assert [state_copies(optim) for optim in averaged] == [2, 3]
    assert update_copies(sgd, is_sharded=True) == 1
    assert update_copies(sgd, is_sharded=False) == update_copies(adamw, is_sharded=True) == 0


# --- live bytes


def test_live_bytes_by_hand() -> None:
    weight = torch.zeros(10)
    with LiveBytes([weight], copies_row="copies") as live:
        live.enter("first", Tag("a", "here"))
        kept = torch.ones(100)  # 400 bytes
        assert kept.view(10, 10).sum().shape == ()  # a view costs nothing, the sum is dropped
        half = weight.to(torch.bfloat16)  # 20 bytes
        live.enter("second", Tag("b", "there"))
        temporary = kept * 2
        assert live.live_bytes() == {
            Tag("a", "here"): 400,
            Tag("copies", "here"): 20,
            Tag("b", "there"): 400,
        }
        live.retag(temporary, Tag("c", ""))
        del temporary, kept
        assert live.live_bytes() == {Tag("copies", "here"): 20}
        del half
        assert live.live_bytes() == {}
    assert live.intervals["first"].total_bytes == 420
    assert live.intervals["second"].total_bytes == 820
    assert live.intervals["second"].by_tag == {
        Tag("a", "here"): 400,
        Tag("copies", "here"): 20,
        Tag("b", "there"): 400,
    }


# --- moments, by hand: one stage of three blocks

STAGE, BLOCK = Tag("stage", "stage, embedding"), Tag("stage", "stage, block")
WORK = Tag("workspace", "")
PARTS = (
    Part("stage", shapes=((1,),)),  # 4 bytes
    Part("stage, block", shapes=((10,),), count=3),  # 40 bytes each
    Part("head", shapes=((100,),)),  # 400 bytes
)
MEASURED = Measurement(
    forward={
        "stage, embedding": {STAGE: Linear(0, 100)},
        "stage, block": {STAGE: Linear(0, 100), BLOCK: Linear(0, 1500)},
        "stage, norm": {STAGE: Linear(0, 100), BLOCK: Linear(0, 1000)},
        "head": {STAGE: Linear(0, 100), BLOCK: Linear(0, 1000), WORK: Linear(0, 200)},
    },
    at_end={STAGE: Linear(0, 100), BLOCK: Linear(0, 1000)},
    kept={STAGE: Linear(0, 100), BLOCK: Linear(0, 1000)},
    backward={
        "head": {STAGE: Linear(0, 100), BLOCK: Linear(0, 1000), WORK: Linear(50, 10)},
        "stage, norm": {STAGE: Linear(0, 100), BLOCK: Linear(0, 1000), Tag("gradients", ""): Linear(400, 0)},
        "stage, block": {STAGE: Linear(0, 100), BLOCK: Linear(0, 900), WORK: Linear(0, 700)},
        "stage, embedding": {STAGE: Linear(0, 100), Tag("gradients", ""): Linear(440, 0)},
    },
)  # fmt: skip


def moments_of(strategy: Strategy, world_size: int = 1, accumulation: int = 1) -> dict[str, dict[str, int]]:
    step = Step(
        parts=PARTS,
        measured=MEASURED,
        layout=layout_of(strategy, world_size=world_size),
        images=2,
        accumulation=accumulation,
        state_copies=2,
        update_copies=1,
    )
    return {
        moment.name: {name: size for name, size in moment.rows.items() if size} for moment in step.moments()
    }


def test_moments_of_one_rank() -> None:
    persistent = {"weights": 524, "optimizer state": 1048}
    assert moments_of("single") == {
        "forward pass, stage, embedding": {**persistent, "stage": 200},
        # The measured block, and the two others of its group.
        "forward pass, stage, block": {**persistent, "stage": 200 + 3000 + 4000},
        "forward pass, stage, norm": {**persistent, "stage": 200 + 6000},
        "forward pass, head": {**persistent, "stage": 200 + 6000, "workspace": 400},
        "backward pass, head": {**persistent, "stage": 200 + 6000, "workspace": 70},
        "backward pass, stage, norm": {**persistent, "stage": 200 + 6000, "gradients": 400},
        "backward pass, stage, block": {**persistent, "stage": 200 + 1800 + 4000, "workspace": 1400},
        # The gradients of the two blocks that are not measured.
        "backward pass, stage, embedding": {**persistent, "stage": 200, "gradients": 440 + 80},
        "update of the weights": {**persistent, "gradients": 524, "workspace": 524},
    }


def test_gradients_persist_with_ddp_and_accumulation() -> None:
    for moments in (moments_of("ddp", 2), moments_of("single", accumulation=2)):
        assert {rows["gradients"] for rows in moments.values()} == {524}


def test_moments_of_a_sharded_rank() -> None:
    moments = moments_of("fsdp", 4)
    local = 4 + 3 * 12 + 100
    assert {rows["weights"] for rows in moments.values()} == {local}
    assert moments["update of the weights"] == {
        "weights": local,
        "gradients": local,
        "optimizer state": 2 * local,
        "workspace": local,
    }
    # The largest unit nearby: a block at the embedding, the head at the blocks.
    assert moments["forward pass, stage, embedding"]["communication buffers"] == 3 * 40
    assert moments["backward pass, stage, block"]["communication buffers"] == 5 * 400
    assert moments["backward pass, stage, embedding"]["gradients"] == 100 + 3 * 12
    # Accumulated gradients are unsharded until they are sent.
    assert moments_of("fsdp", 4, accumulation=2)["forward pass, head"]["gradients"] == 524


# --- ledgers


def test_rows_add_up_to_the_peak() -> None:
    found = demo_ledger()
    assert found.peak_bytes == sum(row.peak_bytes for row in found.rows)
    margin = found.bytes_of("margin")
    assert found.allocated_bytes == found.peak_bytes - margin
    assert margin == round(FRAGMENTATION * found.allocated_bytes) + CONTEXT_BYTES
    assert all(row.bytes >= 0 and row.peak_bytes <= row.bytes for row in found.rows)
    assert len({row.name for row in found.rows}) == len(found.rows)


def test_images_grow_linearly() -> None:
    one, two, four = (demo_ledger(micro_batch=images) for images in (1, 2, 4))
    assert [four.micro_batch, four.accumulation] == [4, 2]
    assert four.activation_bytes - two.activation_bytes == pytest.approx(
        2 * (two.activation_bytes - one.activation_bytes), rel=1e-3
    )
    for before, after in zip(one.rows, two.rows, strict=True):
        if before.image_bytes:
            assert after.bytes - before.bytes == pytest.approx(before.image_bytes, abs=2)


def test_strategies() -> None:
    single, ddp, fsdp = demo_ledger(), demo_ledger("ddp", 4, 2), demo_ledger("fsdp", 4, 2)
    assert ddp.bytes_of("weights") == single.bytes_of("weights")
    assert fsdp.bytes_of("weights") == pytest.approx(single.bytes_of("weights") / 4, rel=0.01)
    assert fsdp.bytes_of("optimizer state") == 2 * fsdp.bytes_of("weights")
    assert ddp.bytes_of("communication buffers") == 0
    assert 0 < fsdp.bytes_of("communication buffers") < 5 * ddp.bytes_of("weights")
    assert ddp.bytes_of("margin") > COMMUNICATOR_BYTES
    hsdp = ledger(DEMO, world_size=4, strategy="hsdp", micro_batch=2, shard_ranks=2)
    assert hsdp.bytes_of("weights") == pytest.approx(single.bytes_of("weights") / 2, rel=0.01)


def test_more_objects_cost_more() -> None:
    few = demo_ledger()
    many = ledger(DEMO, world_size=1, strategy="single", micro_batch=8, num_objects=400)
    assert many.bytes_of("logits and targets") > 2 * few.bytes_of("logits and targets")
    assert many.activation_bytes == pytest.approx(few.activation_bytes, rel=0.01)  # the boxes themselves


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world_size": 0}, "the number of workers must be 1 or more, got 0"),
        ({"micro_batch": -1}, "the micro-batch must be 1 or more, got -1"),
        ({"num_objects": -1}, "the number of objects per image must be 0 or more, got -1"),
        ({"world_size": 3}, "train.global_batch 8 does not divide among 3 workers"),
        ({"micro_batch": 3}, "train.micro_batch 3 does not divide the 8 images"),
        ({"strategy": "fsdp"}, "train.strategy=fsdp requires several workers, got 1"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, object], message: str) -> None:
    all_arguments: dict[str, object] = {"world_size": 1, "strategy": "auto", "micro_batch": 8, **arguments}
    with pytest.raises(ConfigError, match=message):
        ledger(DEMO, **all_arguments)  # type: ignore[arg-type]


def test_measuring_has_no_side_effects_and_ignores_threads() -> None:
    expected, threads = demo_ledger(), torch.get_num_threads()
    _measure.cache_clear()
    torch.manual_seed(1)
    numbers = torch.rand(3)
    torch.manual_seed(1)
    try:
        # On a CPU attention is split by the number of threads, which must not affect the plan for a GPU.
        torch.set_num_threads(2)
        assert demo_ledger() == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.rand(3), numbers)


def test_the_smallest_canvas() -> None:
    # A single cell in the last stage: batch norm refuses a single image.
    run = apply_overrides(DEMO, {"data.canvas_hw": [32, 32]})
    found = ledger(run, world_size=1, strategy="single", micro_batch=8)
    assert 0 < found.activation_bytes < demo_ledger().activation_bytes
