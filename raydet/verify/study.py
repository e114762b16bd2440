"""Checks of a study: each trial finished once, its records agree, it used every sample once."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from raydet.config import DataConfig, Experiment
from raydet.data.build import open_source
from raydet.data.digest import expected_digest
from raydet.data.loader import make_sampler
from raydet.data.split import split_indices
from raydet.errors import StudyError
from raydet.runs.results import RunResults
from raydet.track.base import RunView
from raydet.track.runs import runs_by_name
from raydet.tune.journal import Events, read_journal
from raydet.tune.summary import SUMMARY


@dataclass(slots=True)
class StudyReport:
    """The result of `check_study`."""

    num_finished: int
    """Trials that have finished according to the journal."""
    num_tracked: int | None
    """Of these, those that are complete in the tracker; None: there is no tracker."""
    num_whole: int
    """Of these, those that used every sample once, in order, and recorded every step once."""
    lost_s: float
    """Seconds of lost work and restarts, over all trials."""
    problems: list[str] = field(default_factory=list)
    """One sentence each."""

    def __str__(self) -> str:
        tracker = "no tracker" if self.num_tracked is None else f"{self.num_tracked} complete in the tracker"
        return (
            f"{self.num_finished} trials finished, each once; {tracker}; {self.num_whole} with every sample and step "
            f"once; {self.lost_s:.0f} s of work lost"
        )


def check_study(directory: Path, *, tracking_uri: str | None = None) -> StudyReport:
    """Compare journal, summary, tracker and run directories of a study.

    Args:
        directory: `<storage>/<study>`.
        tracking_uri: as the study's command had it.

    Raises:
        StudyError: the directory is not a study.
        TrackingError: the tracking server cannot be used.
    """
    journal = read_journal(directory)
    if not journal.events:
        raise StudyError(f"{directory} holds no study: journal.jsonl is missing or empty")
    finished = journal.results()
    runs = runs_by_name(tracking_uri, directory=directory.parent, experiment=directory.name)
    names = {event.key: event.name for event in journal.of("finished")}
    problems = [*_journal_problems(journal), *_summary_problems(directory, journal)]
    run_dirs = {path.parent.name: path.parent for path in directory.glob("*/*/config.json")}
    num_tracked = num_whole = 0
    for key, results in finished.items():
        in_tracker = [] if runs is None else list(_tracker_problems(names[key], results, runs))
        in_run = list(run_problems(run_dirs.get(names[key]), names[key], results))
        problems += [*in_tracker, *in_run]
        num_tracked += not in_tracker
        num_whole += not in_run
    return StudyReport(
        num_finished=len(finished),
        num_tracked=None if runs is None else num_tracked,
        num_whole=num_whole,
        lost_s=sum(results.lost_s for results in finished.values()),
        problems=problems,
    )


def _journal_problems(journal: Events) -> Iterable[str]:
    for name, count in Counter(event.name for event in journal.of("finished")).items():
        if count > 1:
            yield f"{name} finished {count} times"
    states = ("started", "finished", "stopped", "failed")
    last = {event.name: event for event in journal.events if event.kind in states}
    for name, event in last.items():
        if event.kind == "started":
            yield f"{name} has started, but not finished"
        elif event.kind == "failed":
            yield f"{name} failed: {event['reason']}"


def _summary_problems(directory: Path, journal: Events) -> Iterable[str]:
    try:
        with (directory / SUMMARY).open(newline="") as file:
            rows = {row["experiment"]: row for row in csv.DictReader(file)}
    except FileNotFoundError:
        yield f"{SUMMARY} is missing"
        return
    for event in journal.of("finished"):
        row = rows.get(event.name)
        assert event.results is not None
        metrics = event.results.final.metrics
        cells = {name: "" if value is None else str(value) for name, value in metrics.items()}
        if row is None or row["status"] != "finished":
            yield f"{event.name} has finished, but {SUMMARY} says {row['status'] if row else 'nothing'}"
        elif any(row.get(name, text) != text for name, text in cells.items()):
            yield f"{event.name}: {SUMMARY} has other metrics than the journal"
    finished = {event.name for event in journal.of("finished")}
    for name, row in rows.items():
        if row["status"] == "finished" and name not in finished:
            yield f"{name} has finished according to {SUMMARY}, but not to the journal"


def _tracker_problems(name: str, results: RunResults, runs: Mapping[str, list[RunView]]) -> Iterable[str]:
    found = runs.get(name, [])
    if len(found) != 1:
        yield f"{name} is in the tracker {len(found)} times"
        return
    (run,) = found
    if run.status != "finished":
        yield f"{name} has finished, but the tracker says {run.status or 'running'}"
    metrics = {name: value for name, value in results.final.metrics.items() if value is not None}
    if any(run.metric(name) != value for name, value in metrics.items() if not name.startswith("system/")):
        yield f"{name}: the tracker has other metrics than the journal"


def run_problems(run_dir: Path | None, name: str, results: RunResults) -> Iterable[str]:
    """Evidence that a finished run did not use every sample and record every step exactly once."""
    if run_dir is None:
        yield f"{name}: its directory is missing"
        return
    experiment = Experiment.from_json((run_dir / "config.json").read_text(), where=str(run_dir))
    data, train = experiment.data.to_json(), experiment.train
    num_steps, digest = _expected(
        data, train.global_batch, experiment.seed, train.epochs, train.steps_per_epoch
    )
    if results.digest != digest:
        yield f"{name}: samples were lost or repeated"
    skipped = set(results.skipped_steps)
    expected = [step for step in range(num_steps) if step not in skipped]
    try:
        with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
            steps = [int(row["step"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        yield f"{name}: metrics_per_batch.csv is missing"
        return
    if steps != expected:
        yield f"{name}: metrics_per_batch.csv has {len(steps)} rows for {len(expected)} steps, or in another order"


@cache
def _expected(
    data: str, global_batch: int, seed: int, epochs: int, steps_per_epoch: int | None
) -> tuple[int, str]:
    """Number of steps and sample digest of a complete run."""
    config = DataConfig.from_json(data, where="the trial's config")
    source = open_source(config)
    indices = split_indices(source, config.split)["train"]
    sampler = make_sampler(config.sampling, source, indices, global_batch, seed)
    num_steps = epochs * (steps_per_epoch or sampler.steps_per_pass)
    image_ids, group_ids = ([ids[index] for index in indices] for ids in (source.image_ids, source.group_ids))
    return num_steps, expected_digest(sampler, image_ids, steps=num_steps, group_ids=group_ids)
