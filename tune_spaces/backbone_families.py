"""Families of backbones: mit_b1, resnet50 and convnext_tiny, of about the same depth, with the base's fusion.

All start from random weights. The cost of a fusion grows with the square of the channels, so a large fusion dominates
the comparison; `add` and `concat` are small.
"""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment
from raydet.tune.study import Factor, GridPhase, Study

FAMILIES: dict[str, dict[str, Any]] = {
    "mit_b1": {"model.backbone": {"kind": "mit", "variant": "b1"}},
    "resnet50": {"model.backbone": {"kind": "timm", "name": "resnet50"}},
    "convnext_tiny": {"model.backbone": {"kind": "timm", "name": "convnext_tiny"}},
}
FAMILY = Factor(path="backbone", letter="", default="mit_b1", values=tuple(FAMILIES), arms=FAMILIES)


def study(base: Experiment) -> Study:
    """Three cells."""
    return Study(
        name="backbone_families",
        base=base,
        factors=(FAMILY,),
        phases=(GridPhase(name="families", vary=(FAMILY.path,)),),
    )
