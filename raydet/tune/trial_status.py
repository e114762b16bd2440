"""The status of a study's trials, and tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rich.table import Table

from raydet.config import Metric
from raydet.errors import StudyError
from raydet.metrics.names import leading_metrics
from raydet.runs.results import RunResults
from raydet.runs.usage import Usage
from raydet.tune.budget import END_EVENTS
from raydet.tune.cells import Trial
from raydet.tune.early_stopping import EarlyStop
from raydet.tune.journal import Events
from raydet.tune.select import Candidate
from raydet.tune.study import Study

Status = Literal["pending", "finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial with its status and results."""

    trial: Trial
    status: Status
    results: RunResults | None = None
    reason: str | None = None
    """Why the trial failed, or was stopped early."""
    stop: EarlyStop | None = None
    """Where the trial was stopped early."""
    usage: Usage | None = None
    """Usage over all attempts up to the last one that ended; None: unknown, or no attempt has ended."""

    def score(self, metric: Metric) -> float | None:
        """The metric in the last epoch; None: it is undefined there, or the trial has not finished."""
        return None if self.results is None else self.results.final[metric.name]


def records_of(trials: Sequence[Trial], journal: Events) -> list[TrialRecord]:
    """One record per trial from the journal: finished if it has results, else by its last event."""
    return [_record(trial, journal) for trial in trials]


def _record(trial: Trial, journal: Events) -> TrialRecord:
    endings = [event for event in journal.about(trial.key) if event.kind in END_EVENTS]
    if not endings:
        return TrialRecord(trial, "pending")
    last = endings[-1]
    finished = [event.results for event in endings if event.results is not None]
    if finished:
        return TrialRecord(trial, "finished", results=finished[-1], usage=last.usage)
    if last.kind == "failed":
        return TrialRecord(trial, "failed", reason=last["reason"], usage=last.usage)
    stop = EarlyStop(last["epoch"], last["score"], last["bar"])
    return TrialRecord(trial, "stopped", reason=last["reason"], stop=stop, usage=last.usage)


def scores_of(records: Sequence[TrialRecord], metric: Metric) -> list[float]:
    """The scores of finished trials.

    Raises:
        StudyError: the metric is undefined for some of them; the message names the trials.
    """
    scores = [(record.trial.name, record.score(metric)) for record in records]
    undefined = [name for name, score in scores if score is None]
    if undefined:
        raise StudyError(
            f"{metric.name} is undefined for {', '.join(undefined)}, e.g. as no validation image has such an object; "
            "a study cannot be decided by it: set task.metric to another metric"
        )
    return [score for _, score in scores if score is not None]


def candidates_of(records: Sequence[TrialRecord], path: str, metric: Metric) -> list[Candidate]:
    """Candidates for promotion: values of the factor at `path` with the scores of their trials.

    If one of its trials was stopped early, a value counts as stopped, with the scores of its stopped trials. Failed
    trials are left out.
    """
    by_pattern: dict[tuple[int, ...], list[TrialRecord]] = {}
    for record in records:
        pattern = record.trial.cell.values[path]
        assert isinstance(pattern, tuple)
        by_pattern.setdefault(pattern, []).append(record)
    candidates = []
    for pattern, runs in by_pattern.items():
        stops = [run.stop for run in runs if run.stop is not None]
        finished = [run for run in runs if run.status == "finished"]
        scores = [stop.score for stop in stops] or scores_of(finished, metric)
        if scores:
            epoch = min((stop.epoch for stop in stops), default=None)
            candidates.append(Candidate(pattern=pattern, scores=tuple(scores), stopped_epoch=epoch))
    return candidates


def contenders(records: Sequence[TrialRecord], metric: Metric) -> list[tuple[str, float]]:
    """Codes and mean scores of the best cell and of the best control.

    A cell with a trial that was stopped early is excluded: its other trials are a biased sample. A cell with a failed
    trial is considered only if all cells of its kind have one.

    Raises:
        StudyError: the metric is undefined for a trial.
    """
    best: dict[bool, tuple[str, float]] = {}
    by_cell: dict[str, list[TrialRecord]] = {}
    stopped = {record.trial.cell.code for record in records if record.status == "stopped"}
    failed = {record.trial.cell.code for record in records if record.status == "failed"}
    cells = [record.trial.cell for record in records]
    kinds_with_complete_cells = {cell.is_control for cell in cells if cell.code not in stopped | failed}
    for record in ranked(records, metric):
        cell = record.trial.cell
        is_incomplete = cell.code in failed and cell.is_control in kinds_with_complete_cells
        if cell.code not in stopped and not is_incomplete:
            by_cell.setdefault(cell.code, []).append(record)
    for code, runs in by_cell.items():
        is_control = runs[0].trial.cell.is_control
        mean = fmean(scores_of(runs, metric))
        if is_control not in best or metric.utility(mean) > metric.utility(best[is_control][1]):
            best[is_control] = (code, mean)
    return [best[is_control] for is_control in (False, True) if is_control in best]


def ranked(records: Sequence[TrialRecord], metric: Metric) -> list[TrialRecord]:
    """Finished trials, best first."""
    finished = [record for record in records if record.status == "finished"]
    return sorted(finished, key=lambda record: -metric.utility(record.score(metric)))


def ranking_table(study: Study, records: Sequence[TrialRecord]) -> Table:
    """All finished trials, best first, with their cost."""
    order = ranked(records, study.decider)
    table = Table(
        title=f"{study.name}: {len(order)} of {len(records)} trials finished, by {study.decider.name}"
    )
    unit = sum((record.usage for record in order if record.usage is not None), start=Usage()).unit
    metrics = leading_metrics(study.base.task, study.decider)
    labels = [metric.label for metric in metrics]
    for column in ("rank", "trial", *labels, "parameters", "wall s", "overhead s", unit):
        table.add_column(column, justify="left" if column == "trial" else "right", no_wrap=True)
    for rank, record in enumerate(order, start=1):
        results = record.results
        assert results is not None, "it has finished"
        table.add_row(
            str(rank),
            record.trial.name,
            *(metric.text(results.final[metric.name]) for metric in metrics),
            f"{results.parameters:,}",
            number(results.wall_s, 1),
            number(results.overhead_s, 1),
            number(None if record.usage is None else record.usage.by_unit[unit], 3),
        )
    return table


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds in a readable unit: 8 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
