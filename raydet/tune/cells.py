"""The rows of a study's tables and the runs that they stand for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raydet.config import Config, Experiment, apply_overrides
from raydet.tune.study import GridPhase, PromotionPhase, Study, Value


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
