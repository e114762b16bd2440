"""A study as data: which runs it has, and how one phase leads to the next.

A study varies factors of a base experiment. A phase is either a full grid over some factors, or a promotion: the best
values of one factor in an earlier phase, each crossed with a grid over other factors. Whatever a phase does not vary
stays at the factor's default, so a promoted phase meets its source phase in cells that have run already; these are
taken over, not run again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from raydet.config import Config, Experiment, apply_overrides

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

    @property
    def paths(self) -> set[str]:
        """Everything in the config that it sets."""
        if self.arms is None:
            return {self.path}
        return {path for arm in self.arms.values() for path in arm}


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


Phase = Annotated[GridPhase | PromotionPhase, Field(discriminator="kind")]


class Study(Config):
    """The whole comparison, fixed before its first run."""

    name: str
    base: Experiment
    factors: tuple[Factor, ...]
    """In the order of a trial's name."""
    phases: tuple[Phase, ...]
    metric: str = "mAP"
    """Column of the last epoch's row that decides; larger is better."""

    def factor(self, path: str) -> Factor:
        """The factor at a config path."""
        return next(factor for factor in self.factors if factor.path == path)


class Cell(Config):
    """One row of a phase's table: a value for every factor, run once per seed."""

    number: int
    """Counts the study's cells from 1; a cell that was taken over keeps the number of its first run."""
    phase: str
    """The phase in which it runs (first)."""
    code: str
    values: dict[str, Value]
    """By config path."""

    def trial_name(self, seed: int, base_seed: int) -> str:
        """`exp_009_s3_r8_is1_mb1`; repeats with other seeds than the base's say so at the end."""
        name = f"exp_{self.number:03d}_{self.code}"
        return name if seed == base_seed else f"{name}_seed{seed}"


class Trial(Config):
    """One run of one cell."""

    name: str
    phase: str
    cell: Cell
    seed: int
    experiment: Experiment

    @property
    def key(self) -> str:
        """Names the run by what it computes: equal keys, equal results."""
        return self.experiment.fingerprint()


def trial_directory(root: Path, trial: Trial) -> Path:
    """Where a trial's files lie: `<study>/<phase>/<trial>`."""
    return root / trial.phase / trial.name


def grid_cells(study: Study, phase: GridPhase, *, first_number: int) -> tuple[Cell, ...]:
    """The cells of a grid phase, numbered from `first_number`."""
    combinations = _combinations(study, phase.vary)
    return tuple(
        _cell(study, phase.name, values, number)
        for number, values in enumerate(combinations, start=first_number)
    )


def promotion_cells(
    study: Study, phase: PromotionPhase, promoted: Sequence[Value], *, known: Sequence[Cell]
) -> tuple[Cell, ...]:
    """The cells of a promotion phase: a pure function of what was promoted.

    Args:
        promoted: values of `phase.promote`, best first.
        known: cells of earlier phases; a cell with the same values is taken over as it is.
    """
    by_code = {cell.code: cell for cell in known}
    number = max((cell.number for cell in known), default=0)
    cells = []
    for value in promoted:
        for values in _combinations(study, phase.vary, fixed={phase.promote: value}):
            cell = _cell(study, phase.name, values, number + 1)
            if cell.code not in by_code:
                number += 1
            cells.append(by_code.get(cell.code, cell))
    return tuple(cells)


def trials_of(study: Study, cells: Iterable[Cell], seeds: Sequence[int]) -> tuple[Trial, ...]:
    """All runs of some cells, repeats of one cell next to one another."""
    return tuple(_trial(study, cell, seed) for cell in cells for seed in seeds)


def seeds_of(study: Study, count: int) -> tuple[int, ...]:
    """The base's seed and the numbers that follow it."""
    return tuple(study.base.seed + offset for offset in range(count))


def _trial(study: Study, cell: Cell, seed: int) -> Trial:
    name = cell.trial_name(seed, study.base.seed)
    overrides: dict[str, Any] = {}
    for factor in study.factors:
        overrides |= factor.settings(cell.values[factor.path])
    overrides |= {"seed": seed, "name": cell.code}
    experiment = apply_overrides(study.base, json.loads(json.dumps(overrides)))
    return Trial(name=name, phase=cell.phase, cell=cell, seed=seed, experiment=experiment)


def _cell(study: Study, phase: str, values: Mapping[str, Value], number: int) -> Cell:
    code = "_".join(factor.code(values[factor.path]) for factor in study.factors)
    return Cell(number=number, phase=phase, code=code, values=dict(values))


def _combinations(
    study: Study, vary: Sequence[str], fixed: Mapping[str, Value] | None = None
) -> Iterable[dict[str, Value]]:
    choices = [factor.values if factor.path in vary else (factor.default,) for factor in study.factors]
    for values in itertools.product(*choices):
        yield dict(zip((factor.path for factor in study.factors), values, strict=True)) | dict(fixed or {})
