"""The plan's activations and peak against real training steps on the CPU."""

from __future__ import annotations

from typing import Any

import pytest

from raydet.config import Experiment
from raydet.plan.fit import with_train
from raydet.plan.ledger import Ledger, ledger
from tests.unit.plan.real import NUM_OBJECTS, experiment, peak_bytes, saved_bytes

EXTENDED = {
    "kind": "gaff",
    "inter_scales": 3,
    "merge_weights": "both",
    "gated": True,
    "guide_intra": True,
    "guide_inter": True,
}


def planned(run: Experiment, images: int) -> Ledger:
    """The ledger of one rank without accumulation, for the CPU's kernels."""
    return ledger(
        with_train(run, global_batch=images),
        world_size=1,
        strategy="single",
        micro_batch=images,
        num_objects=NUM_OBJECTS,
        device_type="cpu",
    )


def run_of(variant: str, precision: str, mode: str, fusion: str) -> Experiment:
    overrides: dict[str, Any] = {
        "train.precision": precision,
        "train.activation_checkpointing": mode,
        "model.fusion": EXTENDED if fusion == "gaff_extended" else {"kind": fusion},
    }
    return experiment(variant, **overrides)


# bf16 is slow on a CPU.
@pytest.mark.parametrize(
    ("variant", "precision", "mode", "fusion"),
    [
        ("nano", "fp32", "none", "gaff"),
        pytest.param("nano", "bf16", "block", "gaff_extended", marks=pytest.mark.slow),
        ("nano", "fp32", "none", "cross_attention"),
        pytest.param("nano", "bf16", "none", "cssa", marks=pytest.mark.slow),
        ("nano", "fp32", "none", "late_concat"),
        ("nano", "bf16", "selective", "cmx"),
        ("b0", "fp32", "block", "cmx"),
        pytest.param("b1", "bf16", "none", "cmx", marks=pytest.mark.slow),
    ],
)
def test_saved_activations(variant: str, precision: str, mode: str, fusion: str) -> None:
    run = run_of(variant, precision, mode, fusion)
    for images in (1, 2):
        assert planned(run, images).activation_bytes == pytest.approx(saved_bytes(run, images), rel=0.05)


@pytest.mark.parametrize(
    ("variant", "precision", "mode", "fusion"),
    [
        pytest.param("nano", "bf16", "block", "gaff_extended", marks=pytest.mark.slow),
        ("nano", "fp32", "none", "cross_attention"),
        pytest.param("nano", "bf16", "none", "cssa", marks=pytest.mark.slow),
        ("nano", "fp32", "none", "late_concat"),
        ("b0", "fp32", "block", "cmx"),
        pytest.param("b1", "bf16", "none", "cmx", marks=pytest.mark.slow),
    ],
)
def test_the_peak_of_a_step(variant: str, precision: str, mode: str, fusion: str) -> None:
    run = run_of(variant, precision, mode, fusion)
    assert planned(run, 2).allocated_bytes == pytest.approx(peak_bytes(run, 2), rel=0.05)


def test_deep_stages_are_counted_block_by_block() -> None:
    # b2 is measured as b1 is, with one block per stage; a real b2 has 3, 4, 6 and 3.
    run = experiment("b2", **{"data.canvas_hw": [96, 128], "train.activation_checkpointing": "none"})
    assert planned(run, 1).activation_bytes == pytest.approx(saved_bytes(run, 1), rel=0.05)


def test_a_single_modality_control() -> None:
    identity = {"kind": "identity"}
    run = experiment("nano", **{"model.fusion": identity, "model.elsewhere": identity})
    assert planned(run, 2).activation_bytes == pytest.approx(saved_bytes(run, 2), rel=0.05)
    assert planned(run, 2).bytes_of("stage 1 aux") == 0
    assert planned(run, 2).allocated_bytes == pytest.approx(peak_bytes(run, 2), rel=0.05)
