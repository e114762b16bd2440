"""Records the progress of trials in the journal, the tracker, the view and the summary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from raydet.checkpoint.retention import intact_checkpoints
from raydet.runs.epoch_watcher import EpochWatcher
from raydet.runs.results import EpochRow, RunResults
from raydet.runs.usage import Usage
from raydet.track.base import RunStatus, Tracker, Upload
from raydet.track.runs import begin_run, end_run, log_usage
from raydet.tune.budget import UsageMeter
from raydet.tune.cells import Trial, arm_labels, trial_directory
from raydet.tune.early_stopping import Screening
from raydet.tune.journal import Journal
from raydet.tune.tracking_queue import TrackingQueue
from raydet.tune.trial_status import TrialRecord
from raydet.tune.view import StudyView

PATIENCE_S = 60.0
"""How long to wait for an unreachable tracker at the end of a phase; the same command makes up for missing updates."""
PATIENCE_AFTER_ERROR_S = 5.0
"""How long to wait if the phase ends with an error or a signal."""

logger = logging.getLogger("raydet")


@dataclass(slots=True)
class TrialListener:
    """Is notified of the trials of a phase, and records them.

    The journal is written at once. Updates of the tracker are queued, so that a slow or unreachable server does not
    hold up the next trial.
    """

    phase: str
    root: Path
    """The study's directory."""
    journal: Journal
    meter: UsageMeter
    tracker: Tracker
    view: StudyView
    screening: Screening | None
    will_retry: Callable[[Trial], bool]
    on_ended: Callable[[TrialRecord], None]
    log_checkpoints: Upload = "none"
    """Which checkpoints of a finished trial are copied to the tracker."""
    _watchers: dict[str, EpochWatcher] = field(default_factory=dict)
    _run_ids: dict[str, str] = field(default_factory=dict)
    """Ids in the tracker by trial key, or by phase."""
    _queue: TrackingQueue = field(init=False)

    def __post_init__(self) -> None:
        self._queue = TrackingQueue(self.view.say)

    def __enter__(self) -> TrialListener:
        self._queue.put(self._phase_id)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status: RunStatus = "finished" if kind is None else "killed"
        for watcher in self._watchers.values():
            watcher.stop()
        for key in self._watchers:  # trials that were interrupted
            self._queue.put(partial(self._close_interrupted, key))
        self._queue.put(partial(self._close_phase, status))
        num_left = self._queue.close(PATIENCE_S if kind is None else PATIENCE_AFTER_ERROR_S)
        if num_left:
            self.view.say(
                f"{num_left} updates have not reached MLflow; nothing is lost, the same command tries again"
            )

    def started(self, trial: Trial) -> None:
        run_dir = trial_directory(self.root, trial)
        directory = _relative_directory(trial)
        self.journal.append("started", key=trial.key, name=trial.name, directory=directory)
        self.meter.started(trial.key, directory)
        self.view.started(trial, run_dir)
        self._queue.put(lambda: self._trial_id(trial))
        if self.screening is not None:
            self.screening.begin(trial)
        watcher = EpochWatcher(run_dir, lambda rows: self._epochs(trial, rows))
        self._watchers[trial.key] = watcher
        watcher.start()

    def finished(self, trial: Trial, results: RunResults, wall_s: float | None) -> None:
        """A trial has finished, after holding its slot for `wall_s`; None: unknown."""
        starts = [event for event in self.journal.about(trial.key) if event.kind == "started"]
        if len(starts) > 1:
            wall_s = None  # it covers the last attempt only, but `loop_s` all of them
        overhead_s = None if wall_s is None else round(wall_s - results.loop_s, 3)
        results = replace(results, wall_s=wall_s and round(wall_s, 3), overhead_s=overhead_s)
        usage = self.meter.ended(trial.key, _relative_directory(trial))
        self._append("finished", trial, usage, results=results)
        record = TrialRecord(trial, "finished", results=results, usage=usage)
        self._ended(record)
        self.track(record)

    def failed(self, trial: Trial, reason: str) -> None:
        usage = self.meter.ended(trial.key, _relative_directory(trial))
        self._append("failed", trial, usage, reason=reason)
        record = TrialRecord(trial, "failed", reason=reason, usage=usage)
        self._ended(record, is_final=not self.will_retry(trial))
        self._queue.put(lambda: self._close_trial(record, "failed"))

    def stopped(self, trial: Trial) -> None:
        """A trial has stopped early, at the screening's request."""
        assert self.screening is not None
        stop = self.screening.stops[trial.key]
        usage = self.meter.ended(trial.key, _relative_directory(trial))
        self._append("stopped", trial, usage, reason=str(stop), **asdict(stop))
        record = TrialRecord(trial, "stopped", reason=str(stop), stop=stop, usage=usage)
        self._ended(record)
        self._queue.put(lambda: self._close_trial(record, "killed"))

    def track(self, record: TrialRecord) -> None:
        """Log a finished trial to the tracker, then note that in the journal."""

        def log() -> None:
            assert record.results is not None
            run_dir = trial_directory(self.root, record.trial)
            end_run(
                self.tracker,
                self._trial_id(record.trial),
                record.trial.experiment,
                run_dir=run_dir,
                checkpoints=intact_checkpoints(run_dir),
                results=record.results,
                usage=record.usage,
                upload=self.log_checkpoints,
            )
            self._log_totals()
            self.journal.append("tracked", key=record.trial.key, name=record.trial.name)

        self._queue.put(log)

    def _epochs(self, trial: Trial, rows: Sequence[EpochRow]) -> None:
        self._queue.put(
            lambda: self.tracker.log_history(self._trial_id(trial), [row.as_json() for row in rows]),
            replaces=f"epochs of {trial.key}",
        )
        if self.screening is not None:
            self.screening.judge(trial, rows)

    def _append(self, event: str, trial: Trial, usage: Usage, **fields: Any) -> None:
        self.journal.append(event, key=trial.key, name=trial.name, usage=usage.as_json(), **fields)

    def _close_interrupted(self, key: str) -> None:
        """Close the run of a trial that was interrupted."""
        if key in self._run_ids:
            log_usage(self.tracker, self._run_ids[key], self.meter.of_trial(key))
            self.tracker.close_run(self._run_ids[key], "killed")

    def _close_phase(self, status: RunStatus) -> None:
        if self.phase in self._run_ids:
            self._log_totals()
            self.tracker.close_run(self._phase_id(), status)

    def _close_trial(self, record: TrialRecord, status: RunStatus) -> None:
        run_id = self._trial_id(record.trial)
        log_usage(self.tracker, run_id, record.usage)
        self.tracker.close_run(run_id, status)
        self._log_totals()

    def _log_totals(self) -> None:
        """Log the usage of the phase and of the study to the run of the phase."""
        log_usage(self.tracker, self._phase_id(), self.meter.total(self.phase), study=self.meter.total())

    def _phase_id(self) -> str:
        """The tracker's id of the phase; called in the tracking thread, like `_trial_id`."""
        return self._known_id(self.phase, lambda: self.tracker.open_run(self.phase, identity=self.phase))

    def _trial_id(self, trial: Trial) -> str:
        return self._known_id(
            trial.key,
            lambda: begin_run(
                self.tracker,
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
        self.on_ended(record)
        self.view.ended(record, is_final=is_final)


def _relative_directory(trial: Trial) -> str:
    return f"{trial.phase}/{trial.name}"
