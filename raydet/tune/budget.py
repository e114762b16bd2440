"""The budget of a study, and what the study has used of the cluster so far."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from raydet.errors import StudyError
from raydet.runs.usage import CPU_WORKER_HOURS, GPU_HOURS, Usage, usage_of
from raydet.tune.journal import Events

END_EVENTS = ("finished", "failed", "stopped")
"""Events that hold a trial's usage."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a study may use, over all of its commands; None: no limit."""

    gpu_hours: float | None = None
    cpu_worker_hours: float | None = None

    def __post_init__(self) -> None:
        for flag, hours in (("gpu", self.gpu_hours), ("worker", self.cpu_worker_hours)):
            if hours is not None and not hours > 0:
                raise StudyError(f"--budget-{flag}-hours must be more than 0, got {hours:g}")

    def __str__(self) -> str:
        parts = {GPU_HOURS: self.gpu_hours, CPU_WORKER_HOURS: self.cpu_worker_hours}
        return " and ".join(f"{hours:g} {unit}" for unit, hours in parts.items() if hours is not None)

    def is_spent(self, usage: Usage) -> bool:
        """Whether nothing is left for another trial.

        >>> Budget(gpu_hours=2.0).is_spent(Usage(gpu_s=7199)), Budget(gpu_hours=2.0).is_spent(Usage(gpu_s=7200))
        (False, True)
        """
        return (self.gpu_hours is not None and usage.gpu_hours >= self.gpu_hours) or (
            self.cpu_worker_hours is not None and usage.cpu_worker_hours >= self.cpu_worker_hours
        )


class UsageMeter:
    """Adds up the usage of all trials: from the journal where they have ended, else from their run directories.

    Args:
        root: the study's directory.
        events: what earlier commands have written. Events without a usage, of older versions, count as nothing.
    """

    def __init__(self, root: Path, events: Events) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._directories: dict[str, str] = {}
        self._open: dict[str, None] = {}
        """Keys of started trials, in order; their usage is read again each time."""
        self._ended: dict[str, Usage] = {}
        self._sums: defaultdict[str, Usage] = defaultdict(Usage)
        """Usage of the ended trials by phase."""
        for event in events.events:
            if event.kind == "started" and "directory" in event.data:
                self.started(event.key, event["directory"])
            elif event.kind in END_EVENTS and event.usage is not None:
                self._end(event.key, event.usage)

    def started(self, key: str, directory: str) -> None:
        """Note that a trial starts or resumes.

        Args:
            directory: `<phase>/<trial>`.
        """
        with self._lock:
            self._directories[key] = directory
            self._open[key] = None
            self._sums[self._phase(key)] -= self._ended.pop(key, Usage())

    def ended(self, key: str, directory: str) -> Usage:
        """Note that an attempt of a trial has ended; returns the trial's usage over all attempts."""
        usage = usage_of(self._root / directory)
        with self._lock:
            self._directories[key] = directory
            self._end(key, usage)
        return usage

    def of_trial(self, key: str) -> Usage:
        """The usage of a trial over all its attempts."""
        with self._lock:
            known, directory = self._ended.get(key), self._directories.get(key)
        if known is not None:
            return known
        return Usage() if directory is None else usage_of(self._root / directory)

    def total(self, phase: str | None = None) -> Usage:
        """The usage of all trials of a phase, or of the study, running trials included."""
        with self._lock:
            total = sum((usage for name, usage in self._sums.items() if phase in (None, name)), start=Usage())
            running = [self._directories[key] for key in self._open if phase in (None, self._phase(key))]
        for directory in running:
            total += usage_of(self._root / directory)
        return total

    def _end(self, key: str, usage: Usage) -> None:
        before = self._ended.get(key, Usage())
        self._open.pop(key, None)
        self._ended[key] = usage
        self._sums[self._phase(key)] += usage - before

    def _phase(self, key: str) -> str:
        return self._directories.get(key, "").split("/")[0]
