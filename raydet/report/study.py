"""The results of a study, read from its directory: definition, runs, and the scores of every cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from raydet.config import Metric
from raydet.errors import StudyError
from raydet.metrics.confusion import ConfusionRecords
from raydet.metrics.records import Records, has_records, read_records
from raydet.runs.results import RunResults
from raydet.runs.usage import Usage
from raydet.stats.bootstrap import resampled_scores
from raydet.tune.budget import UsageMeter
from raydet.tune.cells import Cell, trial_directory
from raydet.tune.journal import Events, read_journal
from raydet.tune.phases import cells_by_phase, recorded_study, trials_by_phase
from raydet.tune.preregistration import Deviation, Protocol, deviations, most_seeds, newest_protocol
from raydet.tune.study import CONFIRMATION, CONTROLS, Study
from raydet.tune.trial_status import TrialRecord, records_of, scores_of


@dataclass(frozen=True)
class CellRuns:
    """The finished runs of one cell in one phase."""

    cell: Cell
    runs: tuple[TrialRecord, ...]
    run_dirs: tuple[Path, ...]
    metric: Metric
    """The metric that decides."""

    @property
    def name(self) -> str:
        return self.cell.code

    @cached_property
    def scores(self) -> list[float]:
        return scores_of(self.runs, self.metric)

    @property
    def mean(self) -> float:
        return fmean(self.scores)

    @property
    def utility(self) -> float:
        """A number that is the larger the better the mean score is."""
        return self.metric.utility(self.mean)

    def mean_of(self, value: Callable[[RunResults], float | None]) -> float | None:
        """The mean of a value of the runs' results; None where a run does not have it."""
        values = [None if run.results is None else value(run.results) for run in self.runs]
        known = [number for number in values if number is not None]
        return fmean(known) if known and len(known) == len(values) else None

    @cached_property
    def usage(self) -> Usage | None:
        """Total usage of the runs, failed attempts included; None where it is unknown."""
        known = [run.usage for run in self.runs if run.usage is not None]
        return sum(known, start=Usage()) if len(known) == len(self.runs) else None

    def final(self, metric: str) -> float | None:
        """The mean of a metric after the last epoch."""
        return self.mean_of(lambda results: results.final[metric])


@dataclass(frozen=True)
class StudyResults:
    """Everything that a report is computed from."""

    directory: Path
    study: Study
    protocol: Protocol
    deviations: list[Deviation]
    events: Events
    cells: dict[str, tuple[CellRuns, ...]]
    """Cells with finished runs, by phase, in the order of its table."""
    records: dict[str, tuple[TrialRecord, ...]]
    """All planned runs, by phase."""

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def num_seeds(self) -> int:
        """Seeds per cell: the largest number that any command asked for."""
        return most_seeds(self.events)

    @property
    def late_hypotheses(self) -> dict[str, int]:
        """Hypotheses that were registered after runs had finished, with the number of these runs."""
        late, finished = {}, 0
        for event in self.events.events:
            finished += event.kind == "finished"
            if event.kind == "hypothesis" and finished:
                late[event.name] = finished
        return late

    @cached_property
    def usage(self) -> Usage:
        """Usage of all runs, including failed, stopped and interrupted ones."""
        return UsageMeter(self.directory, self.events).total()

    def measured_by(self, metric: str) -> StudyResults:
        """The same results, scored by another metric of the task, without cells for which it is undefined."""
        study = self.study.model_copy(update={"metric": metric})
        cells = {
            phase: tuple(
                replace(cell, metric=study.decider)
                for cell in mine
                if all(run.score(study.decider) is not None for run in cell.runs)
            )
            for phase, mine in self.cells.items()
        }
        return replace(self, study=study, cells=cells)

    @property
    def controls(self) -> tuple[CellRuns, ...]:
        return self.cells.get(CONTROLS, ())

    @cached_property
    def arms(self) -> tuple[CellRuns, ...]:
        """Every cell under test, once even if it is in several phases."""
        arms = {
            cell.name: cell
            for phase, cells in self.cells.items()
            for cell in cells
            if phase != CONFIRMATION and not cell.cell.is_control
        }
        return tuple(arms.values())

    @property
    def unfinished(self) -> list[TrialRecord]:
        """Runs without a result, once even if they are in several phases."""
        missing = {
            record.trial.key: record
            for records in self.records.values()
            for record in records
            if record.status != "finished"
        }
        return list(missing.values())


def open_study(directory: Path) -> StudyResults:
    """Read the results of a study from `<storage>/<study>`.

    Raises:
        StudyError: there is no study, it has no protocol, or none of its runs has finished.
    """
    events = read_journal(directory)
    study, protocol = recorded_study(events), newest_protocol(events)
    if study is None:
        raise StudyError(f"{directory} holds no study: journal.jsonl is missing or empty")
    if protocol is None:
        raise StudyError(
            f"{directory} was written by an older version, without a protocol; run the study again"
        )
    trials = trials_by_phase(study, events, most_seeds(events))
    records = {phase: tuple(records_of(mine, events)) for phase, mine in trials.items()}
    tables = cells_by_phase(study, events)
    cells = {
        phase: tuple(
            runs for cell in tables[phase] if (runs := _runs_of(cell, mine, directory, study.decider)).runs
        )
        for phase, mine in records.items()
    }
    if not any(cells.values()):
        raise StudyError(f"{directory}: no run has finished yet, there is nothing to report")
    return StudyResults(directory, study, protocol, deviations(events), events, cells, records)


def _runs_of(cell: Cell, records: Sequence[TrialRecord], directory: Path, metric: Metric) -> CellRuns:
    """The finished runs of a cell; none if some were stopped early: the mean of the others would be biased upwards."""
    of_cell = [
        record
        for record in records
        if record.trial.cell.code == cell.code and record.trial.cell.is_control == cell.is_control
    ]
    is_complete = all(record.status != "stopped" for record in of_cell)
    mine = tuple(record for record in of_cell if is_complete and record.status == "finished")
    return CellRuns(cell, mine, tuple(trial_directory(directory, run.trial) for run in mine), metric)


class Resamples:
    """Scores of runs on the same resampled sets of images, cached; known for resampleable metrics only."""

    def __init__(self, *, count: int, metric: Metric) -> None:
        self.count = count
        self.metric = metric
        self.num_groups = 0
        self._images: Records | None = None
        self._scores: dict[Path, NDArray[np.float64] | None] = {}

    @property
    def num_images(self) -> int:
        """Number of images of the set; 0 where it is unknown."""
        return 0 if self._images is None else len(self._images.image_ids)

    @property
    def constant(self) -> float | None:
        """The best score of an answer that is the same everywhere; None where the metric has none."""
        if not isinstance(self._images, ConfusionRecords):
            return None
        return self._images.constant_score(self.metric.name)

    def mean(self, cells: Sequence[CellRuns]) -> NDArray[np.float64] | None:
        """The mean score of some cells: [count]; None where a run has no records of the same images."""
        means = []
        for cell in cells:
            runs = [self._run(run_dir) for run_dir in cell.run_dirs]
            known = [scores for scores in runs if scores is not None]
            if len(known) < len(runs):
                return None
            means.append(np.mean(known, axis=0))
        mean: NDArray[np.float64] = np.mean(means, axis=0)
        return mean

    def difference(self, a: Sequence[CellRuns], b: Sequence[CellRuns]) -> NDArray[np.float64] | None:
        """The difference of the mean scores: [count], NaN for sets without objects."""
        mine, theirs = self.mean(a), self.mean(b)
        return None if mine is None or theirs is None else mine - theirs

    def _run(self, run_dir: Path) -> NDArray[np.float64] | None:
        if run_dir not in self._scores:
            self._scores[run_dir] = self._resampled(run_dir)
        return self._scores[run_dir]

    def _resampled(self, run_dir: Path) -> NDArray[np.float64] | None:
        is_final = self.metric.is_final
        if not self.metric.is_resampleable or not has_records(run_dir, is_final=is_final):
            return None
        records = read_records(run_dir, is_final=is_final)
        if self._images is None:
            self._images, self.num_groups = records, len(set(records.group_ids.tolist()))
        if not self._images.is_comparable(records):
            return None
        return resampled_scores(records, self.metric.name, count=self.count)
