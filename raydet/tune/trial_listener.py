"""What is written down while the trials of a phase run: journal, tracker, view, summary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from raydet.checkpoint.retention import newest_checkpoint
from raydet.runs.epoch_watcher import EpochWatcher
from raydet.runs.usage import Usage
from raydet.track.base import RunStatus, Tracker
from raydet.track.runs import begin_run, end_run, log_usage
from raydet.tune.budget import Meter
from raydet.tune.cells import Trial, arm_labels, trial_directory
from raydet.tune.early_stopping import Screening
from raydet.tune.journal import Journal
from raydet.tune.tracking_queue import Call, Outbox
from raydet.tune.trial_status import TrialRecord
from raydet.tune.view import StudyView

PATIENCE_S = 60.0
"""For a tracker that is away when a phase ends; what it has not heard by then, the same command tells it."""
HASTE_S = 5.0
"""The same where the command is to end at once."""

logger = logging.getLogger("raydet")


class PhaseBook:
    """Hears how the trials of a phase go, and writes it down.

    The journal is written at once, the tracker by a thread: a slow server must not hold up the next trial, and what is
    to be said to one that is down waits until it is back.
    """

    def __init__(
        self,
        phase: str,
        *,
        root: Path,
        journal: Journal,
        meter: Meter,
        tracker: Tracker,
        view: StudyView,
        screening: Screening | None,
        is_tried_again: Callable[[Trial], bool],
        on_ended: Callable[[TrialRecord], None],
    ) -> None:
        self._phase = phase
        self._root = root
        self._journal = journal
        self._meter = meter
        self._tracker = tracker
        self._view = view
        self._screening = screening
        self._is_tried_again = is_tried_again
        self._on_ended = on_ended
        self._watchers: dict[str, EpochWatcher] = {}
        self._run_ids: dict[str, str] = {}
        self._outbox = Outbox(view.say)

    def __enter__(self) -> PhaseBook:
        self._tell(self._phase_id)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status: RunStatus = "finished" if kind is None else "killed"
        for watcher in self._watchers.values():
            watcher.stop()
        for key in self._watchers:  # what still runs
            self._tell(partial(self._close_cut, key))
        self._tell(partial(self._close_phase, status))
        num_left = self._outbox.close(PATIENCE_S if kind is None else HASTE_S)
        if num_left:
            self._view.say(
                f"{num_left} notes for the tracker wait; nothing is lost, the same command tries again"
            )

    def started(self, trial: Trial) -> None:
        """A trial's process is up."""
        run_dir = trial_directory(self._root, trial)
        self._journal.append("started", key=trial.key, name=trial.name, directory=_place(trial))
        self._meter.started(trial.key, _place(trial))
        self._view.started(trial, run_dir)
        self._tell(lambda: self._trial_id(trial))
        if self._screening is not None:
            self._screening.begin(trial)
        watcher = EpochWatcher(run_dir, lambda rows: self._epochs(trial, rows))
        self._watchers[trial.key] = watcher
        watcher.start()

    def finished(self, trial: Trial, results: dict[str, Any], wall_s: float | None) -> None:
        """A trial has ended well, after `wall_s` in which its share of the cluster was taken; None: unknown."""
        starts = [entry for entry in self._journal.about(trial.key) if entry["event"] == "started"]
        if len(starts) > 1:
            wall_s = None  # of its last life only, while the loop's seconds are of all
        overhead_s = None if wall_s is None else round(wall_s - results["loop_s"], 3)
        costs = {"wall_s": wall_s and round(wall_s, 3), "overhead_s": overhead_s}
        usage = self._taken(trial)
        self._append("finished", trial, usage, results=results | costs)
        record = TrialRecord(trial, "finished", results=results | costs, usage=usage)
        self._ended(record)
        self.track(record)

    def failed(self, trial: Trial, reason: str) -> None:
        """A trial has ended without a result."""
        usage = self._taken(trial)
        self._append("failed", trial, usage, reason=reason)
        record = TrialRecord(trial, "failed", reason=reason, usage=usage)
        self._ended(record, is_final=not self._is_tried_again(trial))
        self._tell(lambda: self._close_trial(record, "failed"))

    def stopped(self, trial: Trial) -> None:
        """A trial was stopped early, as the screening ordered."""
        assert self._screening is not None
        stop, usage = self._screening.stops[trial.key], self._taken(trial)
        self._append("stopped", trial, usage, reason=str(stop), **asdict(stop))
        record = TrialRecord(trial, "stopped", reason=str(stop), stop=asdict(stop), usage=usage)
        self._ended(record)
        self._tell(lambda: self._close_trial(record, "killed"))

    def track(self, record: TrialRecord) -> None:
        """Put a finished trial into the tracker, then say so in the journal."""

        def log() -> None:
            assert record.results is not None
            run_dir = trial_directory(self._root, record.trial)
            end_run(
                self._tracker,
                self._trial_id(record.trial),
                run_dir=run_dir,
                checkpoint=newest_checkpoint(run_dir),
                results=record.results,
                usage=record.usage,
            )
            self._note_totals()
            self._journal.append("tracked", key=record.trial.key, name=record.trial.name)

        self._tell(log)

    def _epochs(self, trial: Trial, rows: Sequence[dict[str, Any]]) -> None:
        self._tell(
            lambda: self._tracker.log_history(self._trial_id(trial), rows), replaces=f"epochs of {trial.key}"
        )
        if self._screening is not None:
            self._screening.judge(trial, rows)

    def _taken(self, trial: Trial) -> Usage:
        return self._meter.ended(trial.key, _place(trial))

    def _append(self, event: str, trial: Trial, usage: Usage, **fields: Any) -> None:
        self._journal.append(event, key=trial.key, name=trial.name, usage=usage.as_json(), **fields)

    def _close_cut(self, key: str) -> None:
        """A trial that has neither ended nor goes on."""
        if key in self._run_ids:
            log_usage(self._tracker, self._run_ids[key], self._meter.of_trial(key))
            self._tracker.close_run(self._run_ids[key], "killed")

    def _close_phase(self, status: RunStatus) -> None:
        if self._phase in self._run_ids:
            self._note_totals()
            self._tracker.close_run(self._phase_id(), status)

    def _close_trial(self, record: TrialRecord, status: RunStatus) -> None:
        run_id = self._trial_id(record.trial)
        log_usage(self._tracker, run_id, record.usage)
        self._tracker.close_run(run_id, status)
        self._note_totals()

    def _note_totals(self) -> None:
        """What the phase has taken, and the study, in the run of the phase."""
        log_usage(self._tracker, self._phase_id(), self._meter.total(self._phase), study=self._meter.total())

    def _tell(self, call: Call, *, replaces: str | None = None) -> None:
        self._outbox.put(call, replaces=replaces)

    def _phase_id(self) -> str:
        """Tracker id of the phase; runs in the tracking thread, as `_trial_id` does."""
        return self._known_id(self._phase, lambda: self._tracker.open_run(self._phase, identity=self._phase))

    def _trial_id(self, trial: Trial) -> str:
        return self._known_id(
            trial.key,
            lambda: begin_run(
                self._tracker,
                trial.experiment,
                name=trial.name,
                identity=trial.key,
                parent=self._phase_id(),
                labels=arm_labels(trial.cell),
            ),
        )

    def _known_id(self, identity: str, open_run: Callable[[], str]) -> str:
        if identity not in self._run_ids:
            self._run_ids[identity] = open_run()
        return self._run_ids[identity]

    def _ended(self, record: TrialRecord, *, is_final: bool = True) -> None:
        watcher = self._watchers.pop(record.trial.key, None)
        if watcher is not None:
            watcher.stop()
        logger.info("%s: %s %s", record.trial.name, record.status, record.reason or "")
        self._on_ended(record)
        self._view.ended(record, is_final=is_final)


def _place(trial: Trial) -> str:
    return f"{trial.phase}/{trial.name}"
