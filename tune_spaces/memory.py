"""The cost in accuracy of precision, activation checkpointing and the width of the pyramid: twelve cells."""

from __future__ import annotations

from raydet.config import Experiment
from raydet.tune.study import Factor, GridPhase, Study

PRECISION = Factor(path="train.precision", letter="", default="fp32", values=("fp32", "bf16"))
CHECKPOINTING = Factor(
    path="train.activation_checkpointing",
    letter="ac_",
    default="none",
    values=("none", "block", "selective"),
    equivalent_values=(("block", "none"), ("selective", "none")),
)
CHANNELS = Factor(path="model.neck.channels", letter="fpn", default=256, values=(256, 128))
FACTORS = (PRECISION, CHECKPOINTING, CHANNELS)


def study(base: Experiment) -> Study:
    """Every combination. Checkpointing changes only the memory: its cells are repeats."""
    return Study(
        name="memory",
        base=base,
        factors=FACTORS,
        phases=(GridPhase(name="settings", vary=tuple(factor.path for factor in FACTORS)),),
        needs_controls=False,
    )
