"""Depth of the backbone: mit_b0 to mit_b5 with the base's fusion."""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.study import Factor, GridPhase, Study

VARIANT = Factor(
    path="model.backbone.variant", letter="mit_", default="b1", values=("b0", "b1", "b2", "b3", "b4", "b5")
)


def study(base: Experiment) -> Study:
    """Six cells."""
    return Study(
        name="backbones",
        base=base,
        factors=(VARIANT,),
        phases=(GridPhase(name="depths", vary=(VARIANT.path,)),),
    )
