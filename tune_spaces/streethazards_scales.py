"""The seven ranges of scales of a published StreetHazards comparison, with the crop whose scale cancels and with one
that changes the size of things."""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment
from raydet.metrics.names import AUROC
from raydet.tune.spaces import require_anomalies
from raydet.tune.study import Claim, Factor, GridPhase, Hypothesis, Study

PHASE = "scales"
RANGES = ((0.9, 1.1), (0.75, 1.25), (0.5, 1.5), (0.7, 2.0), (0.5, 2.0), (0.4, 2.5), (0.3, 3.0))
WINDOWS = ("fixed", "scaled")


def study(base: Experiment) -> Study:
    """Fourteen cells. Where the scale cancels, the ranges differ by blur alone: their spread is mostly noise."""
    require_anomalies(base, "streethazards_scales")
    names = [f"{low:g}-{high:g}" for low, high in RANGES]
    arms: dict[str, dict[str, Any]] = {
        f"{window}_{name}": {"data.augmentation.native_crop": {"scale": list(scale), "window": window}}
        for window in WINDOWS
        for name, scale in zip(names, RANGES, strict=True)
    }
    factor = Factor(path="crop", letter="", default="fixed_0.5-2", values=tuple(arms), arms=arms)
    fixed, scaled = (tuple(f"{window}_{name}" for name in names) for window in WINDOWS)

    def claims(better: tuple[str, ...], worse: tuple[str, ...]) -> tuple[Claim, ...]:
        return (Claim(phase=PHASE, better={factor.path: better}, worse={factor.path: worse}),)

    return Study(
        name="streethazards_scales",
        base=base,
        factors=(factor,),
        phases=(GridPhase(name=PHASE, vary=(factor.path,)),),
        hypotheses=(
            Hypothesis(
                name="H1",
                text="Crops that change the size of things beat those whose scale cancels.",
                claims=claims(fixed, scaled),
            ),
            Hypothesis(
                name="H2",
                text="They find anomalies better, too.",
                claims=claims(fixed, scaled),
                metric=AUROC,
            ),
            Hypothesis(
                name="H3",
                text="Where the scale cancels, its range matters: 0.5-2 beats 0.9-1.1.",
                claims=claims(("scaled_0.5-2",), ("scaled_0.9-1.1",)),
            ),
        ),
        needs_controls=False,
    )
