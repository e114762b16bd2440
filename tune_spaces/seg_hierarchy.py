"""Does a loss that knows the class tree help? Flat cross-entropy against two levels, all levels, and what is added."""

from __future__ import annotations

from typing import Any

from raydet.config import Experiment
from raydet.errors import StudyError
from raydet.tune.spaces import require_masks
from raydet.tune.study import Claim, Factor, GridPhase, Hypothesis, Study

FLAT, TWO, ALL = "flat", "two_level", "all_levels"
PHASE = "losses"
PROJECTION = 64
"""Channels of the embedding of every arm, so that arms with triplets have no more parameters than others."""


def losses(num_levels: int) -> dict[str, dict[str, Any]]:
    """Loss of every arm, for a tree of so many levels above the classes."""
    two = {"kind": "hierarchical", "depth": 1}
    deep = {"kind": "hierarchical"}
    found: dict[str, dict[str, Any]] = {
        FLAT: {"kind": "cross_entropy"},
        TWO: two,
        f"{TWO}_seghiero": {**two, "form": "seghiero"},
    }
    if num_levels > 1:
        found[ALL] = deep
        found[f"{ALL}_seghiero"] = {**deep, "form": "seghiero"}
    found |= {
        f"{TWO}_triplet": {**two, "triplet": {}},
        f"{TWO}_rmi": {**two, "rmi": {}},
    }
    return found


def study(base: Experiment) -> Study:
    """One cell per loss.

    Raises:
        StudyError: the base has no class tree.
    """
    require_masks(base, "seg_hierarchy")
    levels = getattr(base.task, "levels", ())
    if not levels:
        raise StudyError(
            "the space seg_hierarchy compares losses on a class tree, and the task has none; add parents to the set's "
            "classes.yaml, or take --recipe seg_demo"
        )
    arms = {
        name: {"model.head.loss": loss, "model.head.projection": PROJECTION}
        for name, loss in losses(len(levels)).items()
    }
    loss = Factor(
        path="loss",
        letter="",
        default=FLAT,
        values=tuple(arms),
        arms=arms,
        # With two levels both forms are one formula.
        equivalent_values=((f"{TWO}_seghiero", TWO),),
    )

    def beats(better: str, worse: str) -> tuple[Claim, ...]:
        return (Claim(phase=PHASE, better={loss.path: (better,)}, worse={loss.path: (worse,)}),)

    best = ALL if ALL in arms else TWO
    return Study(
        name="seg_hierarchy",
        base=base,
        factors=(loss,),
        phases=(GridPhase(name=PHASE, vary=(loss.path,)),),
        hypotheses=(
            Hypothesis(
                name="H1",
                text="The hierarchical loss lowers the tree distance of mistakes.",
                claims=beats(best, FLAT),
                metric="tree_distance",
            ),
            Hypothesis(name="H2", text="The hierarchical loss raises mIoU.", claims=beats(best, FLAT)),
            Hypothesis(
                name="H3",
                text="Triplets lower the tree distance of mistakes further.",
                claims=beats(f"{TWO}_triplet", TWO),
                metric="tree_distance",
            ),
            Hypothesis(
                name="H0",
                text="SegHiero's form beats HieraSeg's on two levels (they are one formula).",
                claims=beats(f"{TWO}_seghiero", TWO),
            ),
        ),
        needs_controls=False,
    )
