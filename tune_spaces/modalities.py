"""Which sensors help: each alone, every pair, and all of them, under the base's fusion."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from raydet.config import Experiment
from raydet.tune.study import Factor, GridPhase, Study
from tune_spaces import fusion_methods


def study(base: Experiment) -> Study:
    """One cell per set of sensors that the data have; the first of a set has a stream of its own."""
    rgb, aux = fusion_methods.sensors(base)
    present = (*rgb, *aux)
    arms: dict[str, dict[str, Any]] = {}
    for size in range(1, len(present) + 1):
        for first, *others in combinations(present, size):
            streams = {"model.rgb_modalities": [first], "model.aux_modalities": others}
            arms["_".join((first, *others))] = streams if others else {**fusion_methods.ALONE, **streams}
    factor = Factor(path="modalities", letter="", default="_".join(present), values=tuple(arms), arms=arms)
    return Study(
        name="modalities",
        base=base,
        factors=(factor,),
        phases=(GridPhase(name="modalities", vary=(factor.path,)),),
    )
