"""Small objects in recordings of event cameras: patch, levels of the pyramid and weight of small boxes, at equal
windows seen: the factorial that a published study mixed with batch and number of steps."""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment
from raydet.tune.spaces import require_recurrent
from raydet.tune.study import Claim, Factor, GridPhase, Hypothesis, Study

PHASE = "small_objects"
PATCH = Factor(path="model.backbone.patch", letter="p", default=4, values=(4, 2))
LEVELS = Factor(path="model.neck.levels", letter="l", default=3, values=(3, 4))
WEIGHTS: dict[str, dict[str, Any]] = {
    "off": {"model.head.size_aware": "off"},
    "exponential_2": {"model.head.size_aware": "exponential", "model.head.size_factor": 2.0},
    "exponential_2.5": {"model.head.size_aware": "exponential", "model.head.size_factor": 2.5},
}
SMALL = "mAP_small"


def study(base: Experiment) -> Study:
    """Twelve cells. The hypotheses are the published study's targets."""
    require_recurrent(base, "event_small_objects")
    weight = Factor(path="weight", letter="w_", default="off", values=tuple(WEIGHTS), arms=WEIGHTS)
    weighted = tuple(name for name in WEIGHTS if name != "off")

    def claim(better: dict[str, tuple[Any, ...]], worse: dict[str, tuple[Any, ...]]) -> tuple[Claim, ...]:
        return (Claim(phase=PHASE, better=better, worse=worse),)

    return Study(
        name="event_small_objects",
        base=base,
        factors=(PATCH, LEVELS, weight),
        phases=(GridPhase(name=PHASE, vary=(PATCH.path, LEVELS.path, weight.path)),),
        hypotheses=(
            Hypothesis(
                name="H1",
                text="Patches of two pixels with four levels find small objects better than four pixels with three.",
                claims=claim({PATCH.path: (2,), LEVELS.path: (4,)}, {PATCH.path: (4,), LEVELS.path: (3,)}),
                metric=SMALL,
            ),
            Hypothesis(
                name="H2",
                text="A weight for small boxes finds small objects better.",
                claims=claim({weight.path: weighted}, {weight.path: ("off",)}),
                metric=SMALL,
            ),
            Hypothesis(
                name="H3",
                text="Patches of two pixels find small objects better, whatever the pyramid.",
                claims=claim({PATCH.path: (2,)}, {PATCH.path: (4,)}),
                metric=SMALL,
            ),
        ),
        needs_controls=False,
    )
