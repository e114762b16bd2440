"""Every fusion at all four stages, and the controls that it must beat: each sensor alone, and each twice."""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment, Modality
from raydet.tune.controls import present_modalities, single_sensors, streams
from raydet.tune.study import Claim, ControlPhase, Factor, GridPhase, Hypothesis, Study

FUSIONS: dict[str, dict[str, Any]] = {
    "add": {"kind": "add"},
    "concat": {"kind": "concat"},
    "late_concat": {"kind": "late_concat"},
    "cmx": {"kind": "cmx"},
    "gaff": {"kind": "gaff"},
    "gaff_shared": {"kind": "gaff", "inter_shared": True},
    "cssa": {"kind": "cssa"},
    "cssa_trained": {"kind": "cssa", "straight_through": True},
    "cross_attention": {"kind": "cross_attention"},
}
BASELINE = "cmx"
EQUIVALENT_ARMS = (("gaff_shared", "gaff"),)
"""Equivalent arms, one convolution or two of half the width: their difference is noise."""
EARLY, LATE = "cmx_early", "cmx_late"
STAGES = {EARLY: [1, 2], LATE: [3, 4]}
"""The baseline at two of the stages; at the others the detector gets the first stream unchanged."""
PHASE = "methods"


def fused(fusion: dict[str, Any], *, rgb: tuple[Modality, ...], aux: tuple[Modality, ...]) -> dict[str, Any]:
    """Settings of an arm with two streams and one fusion at every stage."""
    return {
        "model.fusion": fusion,
        "model.fusion_stages": [1, 2, 3, 4],
        "model.rgb_modalities": list(rgb),
        "model.aux_modalities": list(aux),
    }


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    """Settings of every arm by name."""
    rgb, aux = streams(base)
    all_stages = {name: fused(fusion, rgb=rgb, aux=aux) for name, fusion in FUSIONS.items()}
    identity = {"model.elsewhere": {"kind": "identity"}}
    two_stages = {
        name: {**all_stages[BASELINE], **identity, "model.fusion_stages": stages}
        for name, stages in STAGES.items()
    }
    return all_stages | two_stages


def controls(base: Experiment) -> dict[str, dict[str, Any]]:
    """Each sensor alone, and twice: two streams and a fusion, but no other sensor to fuse."""
    twice = {
        f"{name}_twice": fused(FUSIONS[BASELINE], rgb=(name,), aux=(name,))
        for name in present_modalities(base)
    }
    return single_sensors(base) | twice


def hypotheses(names: tuple[str, ...]) -> tuple[Hypothesis, ...]:
    """Expectations of fusion.

    Args:
        names: names of the controls, starting with the first sensor.
    """

    def beats(better: str, kind: str, worse: str) -> Claim:
        return Claim(phase=PHASE, better={"method": (better,)}, worse={kind: (worse,)})

    alone = tuple(beats(BASELINE, "control", name) for name in names if not name.endswith("_twice"))
    twice = tuple(beats(BASELINE, "control", name) for name in names if name.endswith("_twice"))
    return (
        Hypothesis(name="F1", text=f"Fusing ({BASELINE}) beats every sensor alone.", claims=alone),
        Hypothesis(
            name="F2",
            text=f"It is the other sensor that helps, not the second stream: {BASELINE} beats every sensor twice.",
            claims=twice,
        ),
        Hypothesis(
            name="F3",
            text=f"What comes in late, at stages 3 and 4, helps: {LATE} beats the first sensor alone.",
            claims=(beats(LATE, "control", names[0]),),
        ),
        Hypothesis(
            name="F4",
            text="Fusing late (stages 3, 4) beats fusing early (stages 1, 2).",
            claims=(beats(LATE, "method", EARLY),),
        ),
        Hypothesis(
            name="F5",
            text=f"GAFF beats the baseline {BASELINE}.",
            claims=(beats("gaff", "method", BASELINE),),
        ),
    )


def study(base: Experiment) -> Study:
    """One cell per arm. `model.flow`, the input of the next stage, is the base's, but late concatenation and single
    sensors keep their streams separate.
    """
    methods, beaten = arms(base), controls(base)
    method = Factor(
        path="method",
        letter="",
        default=BASELINE,
        values=tuple(methods),
        arms=methods,
        equivalent_values=EQUIVALENT_ARMS,
    )
    return Study(
        name="fusion_methods",
        base=base,
        factors=(method,),
        phases=(ControlPhase(arms=beaten), GridPhase(name=PHASE, vary=(method.path,))),
        hypotheses=hypotheses(tuple(beaten)),
    )
