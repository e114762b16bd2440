"""A study as data: its factors, phases and hypotheses.

A study varies factors of a base experiment. A phase is the controls, a full grid over some factors, a promotion (the
best values of one factor in an earlier phase, each crossed with a grid over other factors), or the confirmation of the
winner. Factors that a phase does not vary stay at their defaults, so a promotion phase shares cells with its source
phase; these are reused, not run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from raydet.config import Config, Experiment, Metric
from raydet.metrics.names import deciding_metric, metric_named

CONTROLS: Final = "controls"
CONFIRMATION: Final = "confirmation"
"""Reserved names of phases."""
Value = bool | int | float | str | tuple[int, ...]


class Factor(Config):
    """A varied setting, or a named group of settings (an arm)."""

    path: str
    """Config path, e.g. `model.fusion.se_reduction`; any name if there are `arms`."""
    letter: str
    """Prefix of the value in a trial's name, e.g. `r`."""
    default: Value
    values: tuple[Value, ...]
    arms: Mapping[str, Mapping[str, object]] | None = None
    """Settings by config path of each value, which is then a name; None: `path` is set to the value."""
    equivalent_values: tuple[tuple[Value, Value], ...] = Field(
        default=(), validation_alias=AliasChoices("equivalent_values", "twins")
    )
    """Pairs (value, canonical value) with the same function class and the same initial distribution. Trials of
    equivalent values are repeats: they have different seeds, and their differences measure noise, not the factor. Older
    spaces call the field `twins`."""

    def code(self, value: Value) -> str:
        """The value as in a trial's name: r4, is0, s34."""
        if isinstance(value, bool):
            return f"{self.letter}{int(value)}"
        if isinstance(value, tuple):
            return self.letter + "".join(str(part) for part in value)
        return f"{self.letter}{value}"

    def settings(self, value: Value) -> Mapping[str, object]:
        """Settings of a value by config path."""
        return {self.path: value} if self.arms is None else self.arms[str(value)]

    def canonical(self, value: Value) -> Value:
        """The canonical value among those equivalent to a value."""
        return dict(self.equivalent_values).get(value, value)

    @property
    def paths(self) -> set[str]:
        if self.arms is None:
            return {self.path}
        return {path for arm in self.arms.values() for path in arm}


class ControlPhase(Config):
    """The controls, which a fusion must beat. Runs first, with the study's seeds and schedule; no factor applies."""

    kind: Literal["controls"] = "controls"
    name: Literal["controls"] = CONTROLS
    arms: Mapping[str, Mapping[str, object]]
    """Settings by config path of each control, by the control's name."""


class GridPhase(Config):
    """Every combination of the values of `vary`."""

    kind: Literal["grid"] = "grid"
    name: str
    """Directory of the phase's trials."""
    vary: tuple[str, ...]
    """Config paths of the factors."""
    is_screening: bool = False
    """Whether the phase only selects cells for a later one: early stopping may then stop its trials. A stopped trial
    is resumed if a later phase needs it."""


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
    """The best cell and the best control again, with fresh seeds.

    The best of many noisy scores is biased upwards; only trials with fresh seeds measure how good the winner is.
    """

    kind: Literal["confirmation"] = "confirmation"
    name: Literal["confirmation"] = CONFIRMATION


Phase = Annotated[ControlPhase | GridPhase | PromotionPhase | ConfirmationPhase, Field(discriminator="kind")]


def is_screening(phase: Phase) -> bool:
    """Whether a phase only selects cells for a later one."""
    return isinstance(phase, GridPhase | PromotionPhase) and phase.is_screening


class Claim(Config):
    """The claim that some cells score better than others, by the mean of each side."""

    phase: str
    """The phase of both sides; controls belong to every phase."""
    better: dict[str, tuple[Value, ...]]
    """Admissible values by config path: a cell of this side matches all of them; `control`: names of controls."""
    worse: dict[str, tuple[Value, ...]]


class Hypothesis(Config):
    """An expectation, recorded before the first trial."""

    name: str
    """Short name, e.g. H1."""
    text: str
    """One sentence."""
    claims: tuple[Claim, ...]
    """Claims that must all hold."""
    measure: Literal["score", "gap"] = "score"
    """`gap`: validation loss minus training loss in the last epoch; smaller is better."""
    metric: str | None = None
    """The metric that is compared; null: the study's."""


class Study(Config):
    """A whole comparison, fixed before the first trial."""

    name: str
    base: Experiment
    factors: tuple[Factor, ...]
    """In the order in which they appear in a trial's name."""
    phases: tuple[Phase, ...]
    metric: str | None = None
    """The metric of the last epoch that decides; null: that of the base's task."""
    hypotheses: tuple[Hypothesis, ...] = ()
    needs_controls: bool = True
    """False for studies that compare settings, not sensors or fusions."""

    @model_validator(mode="after")
    def _has_distinct_phase_names(self) -> Self:
        names = [phase.name for phase in self.phases]
        plain = [phase.name for phase in self.phases if isinstance(phase, GridPhase | PromotionPhase)]
        if len(set(names)) < len(names) or {CONTROLS, CONFIRMATION} & set(plain):
            raise ValueError(
                f"names of phases must be distinct, and not {CONTROLS} or {CONFIRMATION}, got {names}"
            )
        return self

    @model_validator(mode="after")
    def _knows_the_metrics_of_its_hypotheses(self) -> Self:
        for hypothesis in self.hypotheses:
            if hypothesis.metric is not None:
                metric_named(self.base.task, hypothesis.metric)
        return self

    @property
    def decider(self) -> Metric:
        task = self.base.task
        return deciding_metric(task) if self.metric is None else metric_named(task, self.metric)

    def factor(self, path: str) -> Factor:
        return next(factor for factor in self.factors if factor.path == path)
