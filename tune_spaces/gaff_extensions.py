"""GAFF's extensions, each alone, against the block as published: which of them is worth its parameters?"""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment, FPNConfig, apply_overrides
from raydet.tune.study import Factor, GridPhase, Study

EQUIVALENT_ARMS = (("gaff_shared", "gaff"),)
"""Equivalent arms: their difference is noise."""


def arms(base: Experiment) -> dict[str, dict[str, Any]]:
    """Settings that each arm adds to the block, by name; the arm of the pyramid's width where there is a pyramid."""
    neck = base.model.neck
    return {
        "gaff": {},
        "gaff_shared": {"inter_shared": True},
        **({"wide_as_the_pyramid": {"out_channels": neck.channels}} if isinstance(neck, FPNConfig) else {}),
        "se_by_stage": {"se_reduction": [2, 4, 8, 16]},
        "lite": {"se_reduction": None},
        "partner_weights": {"merge_weights": "partner"},
        "both_weights": {"merge_weights": "both"},
        "three_scales": {"inter_scales": 3},
        "gated": {"gated": True},
        "guide_intra": {"guide_intra": True},
        "guide_both": {"guide_intra": True, "guide_inter": True},
    }


def study(base: Experiment) -> Study:
    """Eleven cells at the base's stages, with the rectified flow, where a fused map may have any number of channels."""
    fusions = {name: {"model.fusion": {"kind": "gaff", **added}} for name, added in arms(base).items()}
    extension = Factor(
        path="extension",
        letter="",
        default="gaff",
        values=tuple(fusions),
        arms=fusions,
        equivalent_values=EQUIVALENT_ARMS,
    )
    return Study(
        name="gaff_extensions",
        base=apply_overrides(base, {"model.flow": "rectified"}),
        factors=(extension,),
        phases=(GridPhase(name="extensions", vary=(extension.path,)),),
    )
