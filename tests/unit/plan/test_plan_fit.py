"""Sizes as text, divisors, recommendations, remedies, and the fit of b4 and b5."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError
from raydet.plan.fit import BACKBONES, divisors, fit_table, largest_micro_batch, rank_share, recommend
from raydet.plan.ledger import ledger
from raydet.plan.remedies import remedies
from raydet.plan.sizes import GIB, MIB, format_bytes, parse_memory
from raydet.recipes import recipe

DEMO = recipe("demo")
CANVAS = {"data.canvas_hw": [640, 640], "train.global_batch": 16}


def big(name: str, **overrides: object) -> Experiment:
    return apply_overrides(recipe(f"rgbte_mit_{name}"), {**CANVAS, **overrides})


# --- sizes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("80GiB", 80 * GIB),
        (" 80 gib ", 80 * GIB),
        ("24GB", 24 * 10**9),
        ("16000MiB", 16000 * MIB),
        ("1.5GiB", 3 * GIB // 2),
    ],
)
def test_memory_is_read(text: str, size_bytes: int) -> None:
    assert parse_memory(text, where="--gpu-memory") == size_bytes


@pytest.mark.parametrize(
    "text", ["80", "GiB", "-80GiB", "0GiB", "80 GiB each", "80Gib/s", "", "1e3GiB", "8QB"]
)
def test_invalid_memory_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu-memory must be"):
        parse_memory(text, where="--gpu-memory")


def test_sizes_as_text() -> None:
    assert format_bytes(0) == "0.0 MiB"
    assert format_bytes(100 * MIB) == "100.0 MiB"
    assert format_bytes(2.5 * GIB) == "2.50 GiB"


# --- micro-batches


def test_divisors() -> None:
    assert divisors(16) == [16, 8, 4, 2, 1]
    assert divisors(7) == [7, 1]
    assert divisors(1) == [1]


def test_a_ranks_share() -> None:
    assert [rank_share(DEMO, gpus) for gpus in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(ConfigError, match="does not divide among 3 workers"):
        rank_share(DEMO, 3)


def peak(micro_batch: int, **overrides: object) -> int:
    run = apply_overrides(DEMO, overrides)
    return ledger(run, world_size=1, strategy="single", micro_batch=micro_batch).peak_bytes


def test_the_largest_micro_batch_is_a_divisor_that_fits() -> None:
    for micro_batch, exact in ((8, 8), (4, 4), (1, 1)):
        found = largest_micro_batch(DEMO, world_size=1, strategy="single", memory_bytes=peak(micro_batch))
        assert found == exact
    assert largest_micro_batch(DEMO, world_size=1, strategy="single", memory_bytes=peak(1) - 1) is None
    # 6 would fit, but does not divide 8.
    between = (peak(4) + peak(8)) // 2
    assert largest_micro_batch(DEMO, world_size=1, strategy="single", memory_bytes=between) == 4


# --- recommendations


def test_plenty_of_memory() -> None:
    best = recommend(DEMO, world_size=1, memory_bytes=80 * GIB)
    assert best.fits
    assert best.settings == (
        "train.strategy=single",
        "train.activation_checkpointing=none",
        "train.micro_batch=8",
    )
    assert best.reason == "all images fit at once, nothing needs to be recomputed"
    assert recommend(DEMO, world_size=2, memory_bytes=80 * GIB).option.strategy == "ddp"


def test_a_little_less_memory_accumulates() -> None:
    best = recommend(DEMO, world_size=1, memory_bytes=peak(8) - 1)
    assert [best.option.activation_checkpointing, best.option.micro_batch] == ["none", 4]
    assert best.reason == "2 micro-batches of 4 cost less time than recomputing activations"


def test_little_memory_recomputes() -> None:
    # One image at a time would fit as it is; sixteen of them with recomputing are faster.
    best = recommend(big("b5"), world_size=1, memory_bytes=12 * GIB)
    assert best.option.activation_checkpointing == "block"
    assert best.option.micro_batch == 16
    assert "without recomputing activations at most 1 of 16 images would fit at once" in best.reason


def test_too_little_memory_is_reported() -> None:
    best = recommend(DEMO, world_size=1, memory_bytes=GIB // 2)
    assert not best.fits
    assert best.reason.startswith("nothing fits: even one image at a time needs")


def test_the_order_of_the_recommendation() -> None:
    # A model whose weights are large and whose images are small: sharding is what helps.
    run = apply_overrides(recipe("rgbte_mit_b5"), {"data.canvas_hw": [64, 64], "train.global_batch": 8})
    whole = ledger(run, world_size=8, strategy="ddp", micro_batch=1).peak_bytes
    best = recommend(run, world_size=8, memory_bytes=whole - 100 * MIB)
    assert best.option.strategy == "fsdp"
    assert best.option.activation_checkpointing == "none"
    assert "sharding frees memory" in best.reason


def test_the_table_covers_all() -> None:
    run = apply_overrides(recipe("rgbte_mit_b1"), {"data.canvas_hw": [64, 64], "train.global_batch": 8})
    table = fit_table(run, world_size=2, memory_bytes=80 * GIB, backbones=("b1", "b5"))
    assert [(name, option.strategy, option.activation_checkpointing) for name, option in table] == [
        (name, strategy, mode)
        for name in ("mit_b1", "mit_b5")
        for mode in ("none", "block")
        for strategy in ("ddp", "fsdp")
    ]
    assert all(option.micro_batch == 4 for _, option in table)
    assert BACKBONES == ("b0", "b1", "b2", "b3", "b4", "b5")


@pytest.mark.parametrize("name", ["b4", "b5"])
@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_the_large_models_fit_an_80_gib_gpu(name: str, gpus: int) -> None:
    best = recommend(big(name), world_size=gpus, memory_bytes=80 * GIB)
    assert best.fits
    assert best.option.ledger.peak_bytes <= 80 * GIB
    # With checkpointing of blocks, a batch of 16 needs far less.
    recomputing = big(name, **{"train.activation_checkpointing": "block"})
    found = ledger(recomputing, world_size=1, strategy="single", micro_batch=16)
    assert found.peak_bytes < 16 * GIB


# --- remedies


def test_active_remedies_are_not_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every ledger is smaller than the last one: every remedy that is tried helps, the last one most.
    peaks = iter(range(100, 0, -1))
    monkeypatch.setattr(
        "raydet.plan.remedies.ledger", lambda *_, **__: SimpleNamespace(peak_bytes=next(peaks))
    )
    run = apply_overrides(DEMO, {"train.activation_checkpointing": "block", "train.precision": "bf16"})
    found = remedies(run, world_size=8, strategy="fsdp", micro_batch=1)
    assert [(remedy.text, remedy.saving_bytes) for remedy in found] == [
        ("optim.kind=sgd (changes the result)", 2),
        ("data.canvas_hw=[64,96] (changes the result)", 1),
    ]


def test_the_three_best_remedies_with_their_savings(monkeypatch: pytest.MonkeyPatch) -> None:
    def small_ledger(run: Experiment, *, strategy: str, micro_batch: int, **_: object) -> SimpleNamespace:
        factor = 0.25 if run.train.activation_checkpointing == "block" else 1.0
        factor *= 0.5 if run.train.precision == "bf16" else 1.0
        model_bytes = 10 if strategy == "fsdp" else 20
        canvas = run.data.canvas_hw[0] * run.data.canvas_hw[1] / (96 * 128)
        return SimpleNamespace(peak_bytes=model_bytes + int(100 * micro_batch * factor * canvas))

    monkeypatch.setattr("raydet.plan.remedies.ledger", small_ledger)
    found = remedies(DEMO, world_size=2, strategy="ddp", micro_batch=4)
    assert [(remedy.text, remedy.saving_bytes) for remedy in found] == [
        ("train.activation_checkpointing=block", 300),
        ("train.precision=bf16", 200),
        ("train.micro_batch=2 (accumulation follows; the global batch stays 8)", 200),
    ]
