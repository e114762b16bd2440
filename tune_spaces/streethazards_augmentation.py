"""Components of the augmentation of a published StreetHazards comparison: each alone, and all but each."""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment
from raydet.metrics.names import AUROC
from raydet.tune.spaces import require_anomalies
from raydet.tune.study import Claim, Factor, GridPhase, Hypothesis, Study

PHASE = "augmentation"
NONE, ALL = "none", "all"
OFF: dict[str, Any] = {
    "data.augmentation.flip_probability": 0.0,
    "data.augmentation.native_crop": None,
    "data.augmentation.scale_jitter": [1.0, 1.0],
    "data.augmentation.rotation_degrees": 0.0,
    "data.augmentation.photometric.rgb": {},
}
COMPONENTS: dict[str, dict[str, Any]] = {
    "flip": {"data.augmentation.flip_probability": 0.5},
    "scale": {"data.augmentation.native_crop": {"scale": [0.5, 2.0], "window": "fixed"}},
    "rotation": {"data.augmentation.rotation_degrees": 10.0},
    "colour": {
        "data.augmentation.photometric.rgb": {
            "brightness": 0.3,
            "contrast": 0.3,
            "saturation": 0.3,
            "hue": 0.1,
            "blur": 0.5,
        }
    },
}


def study(base: Experiment) -> Study:
    """Ten cells. All are validated on the same letterboxed images: the comparison validated each on its own view."""
    require_anomalies(base, "streethazards_augmentation")
    everything = {path: value for settings in COMPONENTS.values() for path, value in settings.items()}
    arms = {NONE: dict(OFF), ALL: OFF | everything}
    for name, settings in COMPONENTS.items():
        arms[f"only_{name}"] = OFF | settings
        arms[f"without_{name}"] = OFF | everything | {path: OFF[path] for path in settings}
    factor = Factor(path="augmentation", letter="", default=NONE, values=tuple(arms), arms=arms)

    def claims(better: str, worse: str) -> tuple[Claim, ...]:
        return (Claim(phase=PHASE, better={factor.path: (better,)}, worse={factor.path: (worse,)}),)

    return Study(
        name="streethazards_augmentation",
        base=base,
        factors=(factor,),
        phases=(GridPhase(name=PHASE, vary=(factor.path,)),),
        hypotheses=(
            Hypothesis(name="H1", text="All components beat none.", claims=claims(ALL, NONE)),
            Hypothesis(name="H2", text="Scale alone beats none.", claims=claims("only_scale", NONE)),
            Hypothesis(
                name="H3",
                text="Scale alone finds anomalies better than none.",
                claims=claims("only_scale", NONE),
                metric=AUROC,
            ),
            Hypothesis(name="H4", text="Without scale, the rest loses.", claims=claims(ALL, "without_scale")),
        ),
        needs_controls=False,
    )
