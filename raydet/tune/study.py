"""A study as data: which runs it has, and how one phase leads to the next.

A study varies factors of a base experiment. A phase is the controls, a full grid over some factors, a promotion (the
best values of one factor in an earlier phase, each crossed with a grid over other factors), or the confirmation of the
winner. Whatever a phase does not vary stays at the factor's default, so a promoted phase meets its source phase in
cells that have run already; these are taken over, not run again.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from raydet.config import Config, Experiment

CONTROLS: Final = "controls"
CONFIRMATION: Final = "confirmation"
"""Names of the phases that every study may have."""
Value = bool | int | float | str | tuple[int, ...]


class Factor(Config):
    """Something that is varied: one setting, or several at a time that go by a name."""

    path: str
    """Config path, e.g. `model.fusion.se_reduction`; a name of the study's own where there are `arms`."""
    letter: str
    """What stands before the value in a trial's name, e.g. `r`."""
    default: Value
    values: tuple[Value, ...]
    arms: dict[str, dict[str, Any]] | None = None
    """What each value, a name, stands for: settings by config path. None: `path` is set to the value."""
    twins: tuple[tuple[Value, Value], ...] = ()
    """Pairs (value, other value) that are the same function class with the same initial distribution. Their runs are
    repeats: they get seeds of their own, and their differences measure noise, not the factor."""

    def code(self, value: Value) -> str:
        """The value as in a trial's name: r4, is0, s34."""
        if isinstance(value, bool):
            return f"{self.letter}{int(value)}"
        if isinstance(value, tuple):
            return self.letter + "".join(str(part) for part in value)
        return f"{self.letter}{value}"

    def settings(self, value: Value) -> dict[str, Any]:
        """What a value means for the experiment, by config path."""
        return {self.path: value} if self.arms is None else self.arms[str(value)]

    def canonical(self, value: Value) -> Value:
        """The value that stands for all its twins."""
        return dict(self.twins).get(value, value)

    @property
    def paths(self) -> set[str]:
        """Everything in the config that it sets."""
        if self.arms is None:
            return {self.path}
        return {path for arm in self.arms.values() for path in arm}


class ControlPhase(Config):
    """What a fusion must beat. Runs first, with the study's seeds and schedule; no factor applies to it."""

    kind: Literal["controls"] = "controls"
    name: Literal["controls"] = CONTROLS
    arms: dict[str, dict[str, Any]]
    """Settings of the base by config path, by the control's name."""


class GridPhase(Config):
    """Every combination of the values of `vary`."""

    kind: Literal["grid"] = "grid"
    name: str
    """Directory of the phase's trials."""
    vary: tuple[str, ...]
    """Config paths of the factors."""
    is_screening: bool = False
    """It only chooses what goes on: early stopping may end its trials. Where a later phase needs one, it goes on."""


class PromotionPhase(Config):
    """The best values of `promote` in phase `source`, each with every combination of the values of `vary`."""

    kind: Literal["promotion"] = "promotion"
    name: str
    source: str
    promote: str
    """Config path of a factor whose values are tuples: patterns, e.g. sets of stages."""
    top: Annotated[int, Field(ge=1)] = 3
    margin: Annotated[float, Field(ge=0)]
    """Among candidates at most this far below the best one left, a pattern of a size not chosen yet goes first."""
    vary: tuple[str, ...]
    is_screening: bool = False


class ConfirmationPhase(Config):
    """The best cell so far and the best control, once more with seeds that had no part in choosing them.

    The best of many noisy scores is too good on average; only fresh runs say how good it is.
    """

    kind: Literal["confirmation"] = "confirmation"
    name: Literal["confirmation"] = CONFIRMATION


Phase = Annotated[ControlPhase | GridPhase | PromotionPhase | ConfirmationPhase, Field(discriminator="kind")]


def is_screening(phase: Phase) -> bool:
    """Whether a phase only chooses what goes on."""
    return isinstance(phase, GridPhase | PromotionPhase) and phase.is_screening


class Claim(Config):
    """That some cells score better than others, each side by the mean of its cells."""

    phase: str
    """In whose table both sides stand; controls stand in every table."""
    better: dict[str, tuple[Value, ...]]
    """Values by config path that a cell of this side has, all of them; `control`: names of controls."""
    worse: dict[str, tuple[Value, ...]]


class Hypothesis(Config):
    """An expectation, written down before the first run."""

    name: str
    """E.g. H1."""
    text: str
    """One sentence."""
    claims: tuple[Claim, ...]
    """All must hold."""
    measure: Literal["score", "gap"] = "score"
    """`gap`: the validation loss less the training loss of the last epoch; better is smaller."""


class Study(Config):
    """The whole comparison, fixed before its first run."""

    name: str
    base: Experiment
    factors: tuple[Factor, ...]
    """In the order of a trial's name."""
    phases: tuple[Phase, ...]
    metric: str = "mAP"
    """Column of the last epoch's row that decides; larger is better."""
    hypotheses: tuple[Hypothesis, ...] = ()
    needs_controls: bool = True
    """False: it compares settings, not what sensors and fusions bring."""

    @model_validator(mode="after")
    def _phases_have_names_of_their_own(self) -> Self:
        names = [phase.name for phase in self.phases]
        plain = [phase.name for phase in self.phases if isinstance(phase, GridPhase | PromotionPhase)]
        if len(set(names)) < len(names) or {CONTROLS, CONFIRMATION} & set(plain):
            raise ValueError(
                f"phases want different names, none of them {CONTROLS} or {CONFIRMATION}, got {names}"
            )
        return self

    def factor(self, path: str) -> Factor:
        """The factor at a config path."""
        return next(factor for factor in self.factors if factor.path == path)
