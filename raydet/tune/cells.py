"""The rows of a study's tables and the runs that they stand for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from raydet.config import Config, Experiment, apply_overrides
from raydet.tune.study import ControlPhase, GridPhase, PromotionPhase, Study, Value

TWIN_SEEDS = 1_000
"""How far the seeds of a twin lie from those of the cell that it repeats."""
FRESH_SEEDS = 100_000
"""How far the confirmation's seeds lie from all others."""


class Cell(Config):
    """One row of a phase's table: a value for every factor, or a control; run once per seed."""

    number: int
    """Counts the study's cells from 1, controls apart; a cell that was taken over keeps the number of its first run."""
    phase: str
    """The phase in which it runs (first)."""
    code: str
    values: dict[str, Value]
    """By config path; none for a control."""
    is_control: bool = False

    def trial_name(self, seed: int, base_seed: int) -> str:
        """`exp_009_s3_r8_is1_mb1` or `control_thermal`; repeats with other seeds than the base's end in `_seed<n>`."""
        name = f"control_{self.code}" if self.is_control else f"exp_{self.number:03d}_{self.code}"
        return name if seed == base_seed else f"{name}_seed{seed}"


class Trial(Config):
    """One run of one cell."""

    name: str
    phase: str
    cell: Cell
    seed: int
    """Of the study; `experiment.seed` is another one for a twin."""
    experiment: Experiment

    @cached_property
    def key(self) -> str:
        """Names the run by what it computes: equal keys, equal results."""
        return self.experiment.fingerprint()


def trial_directory(root: Path, trial: Trial) -> Path:
    """Where a trial's files lie: `<study>/<phase>/<trial>`."""
    return root / trial.phase / trial.name


def arm_labels(cell: Cell) -> dict[str, Value]:
    """What tells a cell from the others, by names that come first in the alphabet: a tracker's comparison begins with
    them. `arm` is its code, `arm.<factor>` the value of each factor that the code is put together from.
    """
    factors = {path: value for path, value in cell.values.items() if value != cell.code}
    return {"arm": cell.code} | {f"arm.{path.split('.')[-1]}": value for path, value in factors.items()}


def control_cells(phase: ControlPhase) -> tuple[Cell, ...]:
    """The controls, in the order of their definition."""
    return tuple(
        Cell(number=number, phase=phase.name, code=name, values={}, is_control=True)
        for number, name in enumerate(phase.arms, start=1)
    )


def grid_cells(
    study: Study, phase: GridPhase, *, first_number: int, known: Sequence[Cell] = ()
) -> tuple[Cell, ...]:
    """The cells of a grid phase, numbered from `first_number`; one that is known already is taken over as it is."""
    by_code = {cell.code: cell for cell in known if not cell.is_control}
    cells = []
    for values in _combinations(study, phase.vary):
        cell = _cell(study, phase.name, values, first_number)
        first_number += cell.code not in by_code
        cells.append(by_code.get(cell.code, cell))
    return tuple(cells)


def promotion_cells(
    study: Study, phase: PromotionPhase, promoted: Sequence[Value], *, known: Sequence[Cell]
) -> tuple[Cell, ...]:
    """The cells of a promotion phase: a pure function of what was promoted.

    Args:
        promoted: values of `phase.promote`, best first.
        known: cells of earlier phases; a cell with the same values is taken over as it is.
    """
    by_code = {cell.code: cell for cell in known if not cell.is_control}
    number = max((cell.number for cell in by_code.values()), default=0)
    cells = []
    for value in promoted:
        for values in _combinations(study, phase.vary, fixed={phase.promote: value}):
            cell = _cell(study, phase.name, values, number + 1)
            if cell.code not in by_code:
                number += 1
            cells.append(by_code.get(cell.code, cell))
    return tuple(cells)


def twin_of(study: Study, cell: Cell) -> str:
    """The code of the cell that stands for all cells of the same function."""
    if cell.is_control:
        return cell.code
    return _code(study, {factor.path: factor.canonical(cell.values[factor.path]) for factor in study.factors})


def trials_of(
    study: Study, cells: Iterable[Cell], seeds: Sequence[int], *, phase: str | None = None
) -> tuple[Trial, ...]:
    """All runs of some cells, repeats of one cell next to one another.

    Args:
        phase: whose runs these are; None: of the phase where their cell belongs.
    """
    return tuple(_trial(study, cell, seed, phase or cell.phase) for cell in cells for seed in seeds)


def seeds_of(study: Study, count: int) -> tuple[int, ...]:
    """The base's seed and the numbers that follow it."""
    return tuple(study.base.seed + offset for offset in range(count))


def fresh_seeds_of(study: Study, count: int) -> tuple[int, ...]:
    """Seeds for the confirmation, two at least: as many as each cell has had."""
    return tuple(study.base.seed + FRESH_SEEDS + offset for offset in range(max(2, count)))


def _trial(study: Study, cell: Cell, seed: int, phase: str) -> Trial:
    name = cell.trial_name(seed, study.base.seed)
    overrides = _settings(study, cell) | {
        "seed": seed + TWIN_SEEDS * _twin_number(study, cell),
        "name": cell.code,
    }
    experiment = apply_overrides(study.base, json.loads(json.dumps(overrides)))
    return Trial(name=name, phase=phase, cell=cell, seed=seed, experiment=experiment)


def _settings(study: Study, cell: Cell) -> dict[str, Any]:
    """What a cell means for the base, by config path."""
    if cell.is_control:
        return next(phase.arms[cell.code] for phase in study.phases if isinstance(phase, ControlPhase))
    settings: dict[str, Any] = {}
    for factor in study.factors:
        settings |= factor.settings(cell.values[factor.path])
    return settings


def _twin_number(study: Study, cell: Cell) -> int:
    """0 for the cell that stands for its function, and a number of its own for each of its twins: with equal seeds they
    would not be repeats.
    """
    number = 0
    for factor in () if cell.is_control else study.factors:
        value = cell.values[factor.path]
        original = factor.canonical(value)
        twins = [
            other for other in factor.values if factor.canonical(other) == original and other != original
        ]
        number = number * (1 + len(twins)) + [original, *twins].index(value)
    return number


def _code(study: Study, values: Mapping[str, Value]) -> str:
    return "_".join(factor.code(values[factor.path]) for factor in study.factors)


def _cell(study: Study, phase: str, values: Mapping[str, Value], number: int) -> Cell:
    return Cell(number=number, phase=phase, code=_code(study, values), values=dict(values))


def _combinations(
    study: Study, vary: Sequence[str], fixed: Mapping[str, Value] | None = None
) -> Iterable[dict[str, Value]]:
    choices = [factor.values if factor.path in vary else (factor.default,) for factor in study.factors]
    for values in itertools.product(*choices):
        yield dict(zip((factor.path for factor in study.factors), values, strict=True)) | dict(fixed or {})
