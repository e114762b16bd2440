"""Backbones and heads for masks at one schedule: which pair is the most accurate, and what does it cost?"""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment
from raydet.tune.spaces import require_masks
from raydet.tune.study import Claim, Factor, GridPhase, Hypothesis, Study

HEADS = (
    "segformer",
    "ultrafast_segformer",
    "extremely_fast_segformer",
    "aspp",
    "deeplabv3",
    "deeplabv3_plus",
    "fcn",
)
BACKBONES = ("mit_b0", "mit_b1", "resnet18", "resnet50", "convnext_tiny")
PHASE = "heads"


def study(base: Experiment) -> Study:
    """Every backbone with every head; loss, schedule and everything else are the base's.

    The base's own backbone comes first. Published weights are not used: they exist for some backbones only.
    """
    own = require_masks(base, "seg_heads")
    shared = own.model_dump(mode="json", include={"loss", "projection", "auxiliary_weight", "dropout"})
    heads = {kind: {"model.head": {"kind": kind, **shared}} for kind in HEADS}
    backbones: dict[str, dict[str, Any]] = {base.model.backbone.label: {}}
    for name in BACKBONES:
        kind = {"kind": "mit", "variant": name.removeprefix("mit_")} if name.startswith("mit_") else None
        backbones.setdefault(name, {"model.backbone": kind or {"kind": "timm", "name": name}})
    head = Factor(path="head", letter="", default=own.kind, values=tuple(heads), arms=heads)
    backbone = Factor(
        path="backbone", letter="", default=base.model.backbone.label, values=tuple(backbones), arms=backbones
    )
    return Study(
        name="seg_heads",
        base=base,
        factors=(backbone, head),
        phases=(GridPhase(name=PHASE, vary=(backbone.path, head.path)),),
        hypotheses=(
            Hypothesis(
                name="H1",
                text="A wide concatenation of maps (segformer) beats a narrow sum (extremely_fast_segformer).",
                claims=(
                    Claim(
                        phase=PHASE,
                        better={head.path: ("segformer",)},
                        worse={head.path: ("extremely_fast_segformer",)},
                    ),
                ),
            ),
            Hypothesis(
                name="H2",
                text="Atrous pooling (aspp) beats the plain classifier (fcn).",
                claims=(Claim(phase=PHASE, better={head.path: ("aspp",)}, worse={head.path: ("fcn",)}),),
            ),
        ),
        needs_controls=False,
    )
