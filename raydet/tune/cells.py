"""Cells, the rows of a study's tables, and trials, the runs of a cell."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from raydet.config import Config, Experiment, apply_overrides
from raydet.tune.study import ControlPhase, GridPhase, PromotionPhase, Study, Value

EQUIVALENT_SEED_OFFSET = 1_000
"""Distance between the seeds of equivalent cells, which are repeats of one another."""
FRESH_SEED_OFFSET = 100_000
"""Distance between the confirmation's seeds and all others."""


class Cell(Config):
    """One row of a phase's table: a value for every factor, or a control; run once per seed."""

    number: int
    """Position among the study's cells, from 1, controls apart; a cell keeps the number of its first phase."""
    phase: str
    """The first phase that has this cell: its trials run there."""
    code: str
    values: dict[str, Value]
    """Values by config path; empty for a control."""
    is_control: bool = False

    def trial_name(self, seed: int, base_seed: int) -> str:
        """`exp_009_s3_r8_is1_mb1` or `control_thermal`, followed by `_seed<n>` for seeds other than the base's."""
        name = f"control_{self.code}" if self.is_control else f"exp_{self.number:03d}_{self.code}"
        return name if seed == base_seed else f"{name}_seed{seed}"


class Trial(Config):
    """One run of one cell."""

    name: str
    phase: str
    cell: Cell
    seed: int
    """The study's seed; `experiment.seed` differs from it in a cell that is equivalent to another."""
    experiment: Experiment

    @cached_property
    def key(self) -> str:
        """The fingerprint of the experiment: trials with equal keys have equal results."""
        return self.experiment.fingerprint()


def trial_directory(root: Path, trial: Trial) -> Path:
    """The run directory of a trial: `<study>/<phase>/<trial>`."""
    return root / trial.phase / trial.name


def arm_labels(cell: Cell) -> dict[str, Value]:
    """Parameters that distinguish a cell, named so that they come first in a tracker's alphabetical list.

    `arm` is the cell's code, `arm.<factor>` the value of a factor.
    """
    factors = {path: value for path, value in cell.values.items() if value != cell.code}
    return {"arm": cell.code} | {f"arm.{path.split('.')[-1]}": value for path, value in factors.items()}


def control_cells(phase: ControlPhase) -> tuple[Cell, ...]:
    """The cells of the controls, in the order of their definition."""
    return tuple(
        Cell(number=number, phase=phase.name, code=name, values={}, is_control=True)
        for number, name in enumerate(phase.arms, start=1)
    )


def grid_cells(
    study: Study, phase: GridPhase, *, first_number: int, known: Sequence[Cell] = ()
) -> tuple[Cell, ...]:
    """The cells of a grid phase, numbered from `first_number`; cells in `known` are reused."""
    return _numbered(study, phase.name, _combinations(study, phase.vary), first_number, known)


def promotion_cells(
    study: Study, phase: PromotionPhase, promoted: Sequence[Value], *, known: Sequence[Cell]
) -> tuple[Cell, ...]:
    """The cells of a promotion phase, a pure function of the promoted values.

    Args:
        promoted: values of `phase.promote`, best first.
        known: cells of earlier phases; one with the same values is reused.
    """
    first_number = max((cell.number for cell in known if not cell.is_control), default=0) + 1
    rows = (
        values
        for value in promoted
        for values in _combinations(study, phase.vary, fixed={phase.promote: value})
    )
    return _numbered(study, phase.name, rows, first_number, known)


def canonical_code(study: Study, cell: Cell) -> str:
    """The code of the cell that represents all cells equivalent to this one."""
    if cell.is_control:
        return cell.code
    return _code(study, {factor.path: factor.canonical(cell.values[factor.path]) for factor in study.factors})


def trials_of(
    study: Study, cells: Iterable[Cell], seeds: Sequence[int], *, phase: str | None = None
) -> tuple[Trial, ...]:
    """All trials of some cells, one per cell and seed, ordered by cell.

    Args:
        phase: the phase of the trials; None: the phase of their cell.
    """
    return tuple(_trial(study, cell, seed, phase or cell.phase) for cell in cells for seed in seeds)


def seeds_of(study: Study, count: int) -> tuple[int, ...]:
    """The base's seed and the `count - 1` numbers after it."""
    return tuple(study.base.seed + offset for offset in range(count))


def fresh_seeds_of(study: Study, count: int) -> tuple[int, ...]:
    """Seeds for the confirmation: as many as each cell has had, but at least two."""
    return tuple(study.base.seed + FRESH_SEED_OFFSET + offset for offset in range(max(2, count)))


def _trial(study: Study, cell: Cell, seed: int, phase: str) -> Trial:
    settings: dict[str, object] = {}
    if cell.is_control:
        settings |= next(other.arms[cell.code] for other in study.phases if isinstance(other, ControlPhase))
    else:
        for factor in study.factors:
            settings |= factor.settings(cell.values[factor.path])
    settings["seed"] = seed + EQUIVALENT_SEED_OFFSET * _equivalent_index(study, cell)
    settings["name"] = cell.code
    experiment = apply_overrides(study.base, json.loads(json.dumps(settings)))
    name = cell.trial_name(seed, study.base.seed)
    return Trial(name=name, phase=phase, cell=cell, seed=seed, experiment=experiment)


def _equivalent_index(study: Study, cell: Cell) -> int:
    """0 for the canonical cell, another number for each cell equivalent to it: with equal seeds these would not be
    independent repeats.
    """
    number = 0
    for factor in () if cell.is_control else study.factors:
        value = cell.values[factor.path]
        canonical = factor.canonical(value)
        others = [v for v in factor.values if factor.canonical(v) == canonical and v != canonical]
        number = number * (1 + len(others)) + [canonical, *others].index(value)
    return number


def _code(study: Study, values: Mapping[str, Value]) -> str:
    return "_".join(factor.code(values[factor.path]) for factor in study.factors)


def _numbered(
    study: Study, phase: str, rows: Iterable[Mapping[str, Value]], number: int, known: Sequence[Cell]
) -> tuple[Cell, ...]:
    by_code = {cell.code: cell for cell in known if not cell.is_control}
    cells = []
    for values in rows:
        code = _code(study, values)
        if code in by_code:
            cells.append(by_code[code])
        else:
            cells.append(Cell(number=number, phase=phase, code=code, values=dict(values)))
            number += 1
    return tuple(cells)


def _combinations(
    study: Study, vary: Sequence[str], fixed: Mapping[str, Value] | None = None
) -> Iterable[dict[str, Value]]:
    choices = [factor.values if factor.path in vary else (factor.default,) for factor in study.factors]
    for values in itertools.product(*choices):
        yield dict(zip((factor.path for factor in study.factors), values, strict=True)) | dict(fixed or {})
