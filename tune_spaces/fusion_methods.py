"""Every fusion at all four stages, and the controls that a fusion must beat: each sensor alone, and each twice."""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment, Modality
from raydet.errors import StudyError
from raydet.tune.study import Factor, GridPhase, Study

ALL_STAGES = [1, 2, 3, 4]
ALONE: dict[str, Any] = {"model.fusion_stages": [], "model.elsewhere": {"kind": "identity"}}
"""No stage fuses."""
FUSIONS: dict[str, dict[str, Any]] = {
    "add": {"kind": "add"},
    "concat": {"kind": "concat"},
    "late_concat": {"kind": "late_concat"},
    "cmx": {"kind": "cmx"},
    "gaff": {"kind": "gaff"},
    "cssa": {"kind": "cssa"},
    "cssa_trained": {"kind": "cssa", "straight_through": True},
    "cross_attention": {"kind": "cross_attention"},
}


def sensors(base: Experiment) -> tuple[tuple[Modality, ...], tuple[Modality, ...]]:
    """What the data have for either stream of the base.

    Raises:
        StudyError: there is nothing to fuse.
    """
    model, missing = base.model, base.data.missing
    rgb = tuple(name for name in model.rgb_modalities if name not in missing)
    aux = tuple(name for name in model.aux_modalities if name not in missing)
    if not rgb or not aux:
        raise StudyError(
            f"the data lack {', '.join(missing)}: nothing is left to fuse with {', '.join(rgb or aux) or 'anything'}"
        )
    return rgb, aux


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    """Settings of every arm by its name, the controls first."""
    rgb, aux = sensors(base)
    present = (*rgb, *aux)
    controls: dict[str, dict[str, Any]] = {
        name: {**ALONE, "model.rgb_modalities": [name]} for name in present
    }
    # Twice the same sensor: two streams and a fusion, but nothing new to fuse.
    doubles = {f"{name}_twice": fused({"kind": "cmx"}, rgb=(name,), aux=(name,)) for name in present}
    fusions = {name: fused(fusion, rgb=rgb, aux=aux) for name, fusion in FUSIONS.items()}
    return {**controls, **doubles, **fusions}


def fused(fusion: dict[str, Any], *, rgb: tuple[Modality, ...], aux: tuple[Modality, ...]) -> dict[str, Any]:
    """Settings of an arm with two streams and one fusion at every stage."""
    return {
        "model.fusion": fusion,
        "model.fusion_stages": ALL_STAGES,
        "model.rgb_modalities": list(rgb),
        "model.aux_modalities": list(aux),
    }


def study(base: Experiment) -> Study:
    """One cell per arm. What enters the next stage (`model.flow`) is the base's, where an arm has a choice: late
    concatenation and single sensors keep their streams apart.
    """
    methods = arms(base)
    method = Factor(path="method", letter="", default="cmx", values=tuple(methods), arms=methods)
    return Study(
        name="fusion_methods",
        base=base,
        factors=(method,),
        phases=(GridPhase(name="methods", vary=(method.path,)),),
    )
