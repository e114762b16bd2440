"""The live view of a study: running trials and their progress, the best trial so far, the remaining time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raydet.config import Metric, Task
from raydet.metrics.names import leading_metrics
from raydet.redact import redact
from raydet.runs.run_dir import read_progress
from raydet.tune.budget import Budget, UsageMeter
from raydet.tune.cells import Trial
from raydet.tune.trial_status import TrialRecord, duration, number

MIN_FRACTION = 0.1
"""Fraction of a trial from which its speed counts; before, start-up dominates."""


class _Running(NamedTuple):
    run_dir: Path
    since: float
    done_before: float
    """Fraction of the trial that was complete when this command started it."""


@dataclass
class StudyView:
    """Is notified of events by the driver; draws itself on a terminal, or prints one line per event to a log."""

    console: Console
    study: str
    task: Task
    metric: Metric
    """The metric that decides."""
    meter: UsageMeter | None = None
    """The usage of the study; None: not shown."""
    budget: Budget = Budget()  # noqa: RUF009  -- frozen
    total: int = 0
    """Number of trials of the study, undecided phases included."""
    done: int = 0
    best: TrialRecord | None = None
    _running: dict[str, _Running] = field(default_factory=dict)
    _since: float | None = None
    """When the first trial of this command started."""
    _completed: float = 0.0
    """Work of this command in trials that have ended, in units of a whole trial."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw on a terminal until the block ends; a log is not redrawn."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self, console=self.console, refresh_per_second=2, transient=True):
            yield

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(redact(text), highlight=False, soft_wrap=True)

    def begin_phase(
        self,
        phase: str,
        records: Sequence[TrialRecord],
        known: Sequence[TrialRecord],
        *,
        num_missing: int,
        num_done: int,
        num_undecided: int,
    ) -> None:
        """A phase begins with the trials `records`.

        Args:
            known: all decided trials of the study.
            num_missing: number of trials of this phase that have to run.
            num_done: number of trials in `known` that do not have to run.
            num_undecided: number of trials of undecided phases.
        """
        num_finished = sum(record.status == "finished" for record in records)
        self.total, self.done = len(known) + num_undecided, num_done
        for record in known:
            self._keep_best(record)
        self.say(f"{phase}: {len(records)} trials, {num_finished} finished already, {num_missing} to run")

    def started(self, trial: Trial, run_dir: Path) -> None:
        """A trial starts or resumes."""
        with self._lock:
            now = time.monotonic()
            self._running[trial.name] = _Running(run_dir, now, fraction_done(run_dir))
            self._since = now if self._since is None else self._since
        if not self.console.is_terminal:
            self.say(f"started {trial.name}")

    def ended(self, record: TrialRecord, *, is_final: bool) -> None:
        """A trial has ended; if `is_final`, it is not run again."""
        with self._lock:
            running = self._running.pop(record.trial.name, None)
            if running is not None:
                is_complete = record.status == "stopped" or record.results is not None
                fraction = 1.0 if is_complete else fraction_done(running.run_dir)
                self._completed += max(0.0, fraction - running.done_before)
            self.done += is_final
        head = f"[{self.done}/{self.total}] {record.trial.name}"
        if record.status == "stopped":
            self.say(f"{head}  stopped early: {self.metric.name} {record.reason}{_usage(record)}")
            return
        if record.results is None:
            retry = "" if is_final else ", will be retried"
            self.say(f"{head}  FAILED{retry}: {record.reason}{_usage(record)}")
            return
        self._keep_best(record)
        final, results = record.results.final, record.results
        metrics = leading_metrics(self.task, self.metric, count=2)
        scores = "  ".join(f"{metric.label} {metric.text(final[metric.name])}" for metric in metrics)
        self.say(
            f"{head}  {scores}  loss {number(final.loss)}  "
            f"{_seconds(results.wall_s)}, of which overhead {_seconds(results.overhead_s)}{_usage(record)}"
            + ("" if self.console.is_terminal else f"  |  {self._summary()}")
        )

    def time_left_s(self) -> float | None:
        """Estimated seconds left, from the speed of this command, running trials included; None: too early to tell."""
        with self._lock:
            running, completed = list(self._running.values()), self._completed
            left = float(self.total - self.done)
        now = time.monotonic()
        slowest_s = 0.0
        for trial in running:
            fraction = fraction_done(trial.run_dir)
            progress = max(0.0, fraction - trial.done_before)
            completed, left = completed + progress, left - fraction
            # At the end fewer trials run at a time than before, and the slowest one decides.
            if progress >= MIN_FRACTION:
                slowest_s = max(slowest_s, (now - trial.since) / progress * (1 - fraction))
        if self._since is None or completed < MIN_FRACTION:
            return None
        return max(slowest_s, (now - self._since) / completed * left)

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            running = list(self._running.items())
        for name, trial in running:
            table.add_row(name, *_progress_cells(trial.run_dir, time.monotonic() - trial.since))
        return Group(Text(f"{self.study}: {self.done}/{self.total} trials  |  {self._summary()}"), table)

    def _summary(self) -> str:
        left = self.time_left_s()
        best = "none yet"
        if self.best is not None:
            score = self.metric.text(self.best.score(self.metric))
            best = f"{self.best.trial.name} {self.metric.label} {score}"
        summary = f"best {best}  |  left {'unknown' if left is None else 'about ' + duration(left)}"
        if self.meter is None:
            return summary
        limit = f" of {self.budget}" if self.budget != Budget() else ""
        return f"{summary}  |  {self.meter.total()}{limit}"

    def _keep_best(self, record: TrialRecord) -> None:
        best = -math.inf if self.best is None else self.metric.utility(self.best.score(self.metric))
        if self.metric.utility(record.score(self.metric)) > best:
            self.best = record


def fraction_done(run_dir: Path) -> float:
    """The completed fraction of a run's training, 0..1, on whatever node it runs."""
    progress = read_progress(run_dir)
    return 0.0 if progress is None else progress["step"] / progress["total_steps"]


def _usage(record: TrialRecord) -> str:
    return "" if record.usage is None else f", {record.usage}"


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} s"


def _progress_cells(run_dir: Path, elapsed_s: float) -> tuple[RenderableType, ...]:
    progress = read_progress(run_dir)
    if progress is None:
        return ProgressBar(width=20, pulse=True), f"starting, {elapsed_s:.0f} s"
    bar = ProgressBar(total=progress["total_steps"], completed=progress["step"], width=20)
    text = (
        f"epoch {progress['epoch']}/{progress['epochs']}  loss {progress['loss']:.3f}  "
        f"{progress['images_per_s']:.1f} images/s  left {duration(progress['eta_s'])}"
    )
    return bar, text
