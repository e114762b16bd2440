"""Sets of sensors: every pair, and all of them, with the base's fusion, against each sensor alone."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from raydet.config import Experiment
from raydet.tune.controls import streams
from raydet.tune.study import Factor, GridPhase, Study


def study(base: Experiment) -> Study:
    """One cell per set of sensors in the data; the first sensor of a set has its own stream."""
    rgb, aux = streams(base)
    present = (*rgb, *aux)
    arms: dict[str, dict[str, Any]] = {
        "_".join(chosen): {"model.rgb_modalities": [chosen[0]], "model.aux_modalities": list(chosen[1:])}
        for size in range(2, len(present) + 1)
        for chosen in combinations(present, size)
    }
    factor = Factor(path="modalities", letter="", default="_".join(present), values=tuple(arms), arms=arms)
    return Study(
        name="modalities",
        base=base,
        factors=(factor,),
        phases=(GridPhase(name="modalities", vary=(factor.path,)),),
    )
