"""A study's directory, read: what it was to be, what has run, and the scores of every cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydet.errors import StudyError
from raydet.metrics.matches import MatchRecords
from raydet.runs.run_dir import MATCH_RECORDS
from raydet.runs.usage import Usage
from raydet.stats.bootstrap import is_same_images, resampled_scores
from raydet.tune.budget import Meter
from raydet.tune.cells import Cell, trial_directory
from raydet.tune.journal import Events, read_journal
from raydet.tune.phases import cells_by_phase, recorded_study, trials_by_phase
from raydet.tune.preregistration import Deviation, Protocol, deviations, most_seeds, newest_protocol
from raydet.tune.study import CONFIRMATION, CONTROLS, Study
from raydet.tune.trial_status import TrialRecord, records_of

THRESHOLDS: dict[str, int | None] = {"mAP": None, "mAP_50": 0, "mAP_75": 5}
"""Metrics that follow from match records, with the place of their IoU threshold; None: the mean over all."""


@dataclass(frozen=True)
class CellRuns:
    """The finished runs of one cell in one phase."""

    cell: Cell
    runs: tuple[TrialRecord, ...]
    run_dirs: tuple[Path, ...]
    metric: str

    @property
    def name(self) -> str:
        """As in tables and figures."""
        return self.cell.code

    @cached_property
    def scores(self) -> list[float]:
        """One per run."""
        return [run.score(self.metric) or 0.0 for run in self.runs]

    @property
    def mean(self) -> float:
        """Of the scores."""
        return fmean(self.scores)

    def mean_of(self, value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        """The mean of something in the runs' results; None where a run does not have it."""
        values = [value(run.results or {}) for run in self.runs]
        known = [number for number in values if number is not None]
        return fmean(known) if known and len(known) == len(values) else None

    @cached_property
    def usage(self) -> Usage | None:
        """What its runs have taken together, attempts that came to nothing included; None where that is unknown."""
        known = [run.usage for run in self.runs if run.usage is not None]
        return sum(known, start=Usage()) if len(known) == len(self.runs) else None

    def final(self, metric: str) -> float | None:
        """The mean of a metric of the last epoch."""
        return self.mean_of(lambda results: results.get("final", {}).get(metric))


@dataclass(frozen=True)
class StudyResults:
    """All that a report is made from."""

    directory: Path
    study: Study
    protocol: Protocol
    deviations: list[Deviation]
    events: Events
    cells: dict[str, tuple[CellRuns, ...]]
    """Cells with a finished run, by phase, in the order of its table."""
    records: dict[str, tuple[TrialRecord, ...]]
    """All runs that are decided, by phase."""

    @property
    def name(self) -> str:
        """Of the study."""
        return self.study.name

    @property
    def num_seeds(self) -> int:
        """Per cell: the most that a command has asked for."""
        return most_seeds(self.events)

    @property
    def late_hypotheses(self) -> dict[str, int]:
        """Those that were written down after results could be seen, with their number."""
        late, finished = {}, 0
        for entry in self.events.events:
            finished += entry["event"] == "finished"
            if entry["event"] == "hypothesis" and finished:
                late[entry["name"]] = finished
        return late

    @cached_property
    def usage(self) -> Usage:
        """What all runs have taken, those too that failed, were stopped or cut off."""
        return Meter(self.directory, self.events).total()

    @property
    def controls(self) -> tuple[CellRuns, ...]:
        """What a fusion must beat."""
        return self.cells.get(CONTROLS, ())

    @cached_property
    def arms(self) -> tuple[CellRuns, ...]:
        """Every cell under test, once."""
        arms = {
            cell.name: cell
            for phase, cells in self.cells.items()
            for cell in cells
            if phase != CONFIRMATION and not cell.cell.is_control
        }
        return tuple(arms.values())

    @property
    def unfinished(self) -> list[TrialRecord]:
        """Runs without a result, each once."""
        missing = {
            record.trial.key: record
            for records in self.records.values()
            for record in records
            if record.status != "finished"
        }
        return list(missing.values())


def open_study(directory: Path) -> StudyResults:
    """Read a study.

    Args:
        directory: `<storage>/<study>`.

    Raises:
        StudyError: there is none, it is older than protocols, or nothing of it has finished.
    """
    events = read_journal(directory)
    study, protocol = recorded_study(events), newest_protocol(events)
    if study is None:
        raise StudyError(f"{directory} holds no study: journal.jsonl is missing or empty")
    if protocol is None:
        raise StudyError(f"{directory} holds a study of an older version, without a protocol; run it anew")
    trials = trials_by_phase(study, events, most_seeds(events))
    records = {phase: tuple(records_of(mine, events)) for phase, mine in trials.items()}
    tables = cells_by_phase(study, events)
    cells = {
        phase: tuple(
            runs for cell in tables[phase] if (runs := _runs_of(cell, mine, directory, study.metric)).runs
        )
        for phase, mine in records.items()
    }
    if not any(cells.values()):
        raise StudyError(f"{directory}: no run has finished yet, there is nothing to report")
    return StudyResults(directory, study, protocol, deviations(events), events, cells, records)


def _runs_of(cell: Cell, records: Sequence[TrialRecord], directory: Path, metric: str) -> CellRuns:
    """None of a cell of which some were stopped early: those that were left to run were the lucky ones."""
    all_of_it = [
        record
        for record in records
        if record.trial.cell.code == cell.code and record.trial.cell.is_control == cell.is_control
    ]
    is_cut = any(record.status == "stopped" for record in all_of_it)
    mine = () if is_cut else tuple(record for record in all_of_it if record.status == "finished")
    return CellRuns(cell, mine, tuple(trial_directory(directory, run.trial) for run in mine), metric)


class Resamples:
    """Scores of every run on the same resampled sets of images, computed once, on demand."""

    def __init__(self, *, count: int, metric: str) -> None:
        """`metric`: mAP, mAP_50 or mAP_75; of others nothing is known."""
        self.count = count
        self.metric = metric
        self.num_groups = 0
        self._images: MatchRecords | None = None
        self._scores: dict[Path, NDArray[np.float64] | None] = {}

    @property
    def num_images(self) -> int:
        """Of the set; 0 where it is not known."""
        return 0 if self._images is None else len(self._images.image_ids)

    def of(self, cells: Sequence[CellRuns]) -> NDArray[np.float64] | None:
        """The mean over some cells, [count]; None where a run has no match records of the same images."""
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
        """Of two means; NaN for sets that hold no object."""
        mine, theirs = self.of(a), self.of(b)
        return None if mine is None or theirs is None else mine - theirs

    def _run(self, run_dir: Path) -> NDArray[np.float64] | None:
        if run_dir not in self._scores:
            self._scores[run_dir] = self._resampled(run_dir / MATCH_RECORDS)
        return self._scores[run_dir]

    def _resampled(self, path: Path) -> NDArray[np.float64] | None:
        if self.metric not in THRESHOLDS or not path.is_file():
            return None
        records = MatchRecords.load(path)
        if self._images is None:
            self._images, self.num_groups = records, len(set(records.group_ids.tolist()))
        if not is_same_images(self._images, records):
            return None
        return resampled_scores(records, count=self.count, threshold=THRESHOLDS[self.metric])
