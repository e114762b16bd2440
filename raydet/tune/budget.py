"""What a study has taken of the cluster so far, and what it may take."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydet.errors import StudyError
from raydet.runs.usage import CPU_WORKER_HOURS, GPU_HOURS, Usage, usage_of
from raydet.tune.journal import Events

ENDINGS = ("finished", "failed", "stopped")
"""Events that hold a trial's usage."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a study may take, all commands together; None: as much as it takes."""

    gpu_hours: float | None = None
    cpu_worker_hours: float | None = None

    def __post_init__(self) -> None:
        for flag, hours in (("gpu", self.gpu_hours), ("worker", self.cpu_worker_hours)):
            if hours is not None and not hours > 0:
                raise StudyError(f"--budget-{flag}-hours wants more than 0, got {hours:g}")

    def __str__(self) -> str:
        parts = {GPU_HOURS: self.gpu_hours, CPU_WORKER_HOURS: self.cpu_worker_hours}
        return " and ".join(f"{hours:g} {unit}" for unit, hours in parts.items() if hours is not None)

    def is_spent(self, usage: Usage) -> bool:
        """Nothing is left for another trial.

        >>> Budget(gpu_hours=2.0).is_spent(Usage(gpu_s=7199)), Budget(gpu_hours=2.0).is_spent(Usage(gpu_s=7200))
        (False, True)
        """
        return (self.gpu_hours is not None and usage.gpu_hours >= self.gpu_hours) or (
            self.cpu_worker_hours is not None and usage.cpu_worker_hours >= self.cpu_worker_hours
        )


class Meter:
    """Adds up what the journal says of trials that have ended, and what the others have noted in their directories.

    Args:
        root: the study's directory.
        events: what earlier commands have written; those of studies older than meters count nothing.
    """

    def __init__(self, root: Path, events: Events) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._places: dict[str, str] = {}
        self._open: dict[str, None] = {}
        """Trials that have begun, in order: what they take is asked anew each time."""
        self._ended: dict[str, Usage] = {}
        self._sums: defaultdict[str, Usage] = defaultdict(Usage)
        """Of the ended ones, by phase."""
        for entry in events.events:
            if entry["event"] == "started" and "directory" in entry:
                self.started(entry["key"], entry["directory"])
            elif entry["event"] in ENDINGS and (usage := journalled(entry)) is not None:
                self._end(entry["key"], usage)

    def started(self, key: str, directory: str) -> None:
        """A trial begins, or goes on.

        Args:
            directory: `<phase>/<trial>`.
        """
        with self._lock:
            self._places[key] = directory
            self._open[key] = None
            self._sums[self._phase(key)] -= self._ended.pop(key, Usage())

    def ended(self, key: str, directory: str) -> Usage:
        """A trial has ended, for now or for good; what it has taken, over all its attempts."""
        usage = usage_of(self._root / directory)
        with self._lock:
            self._places[key] = directory
            self._end(key, usage)
        return usage

    def of_trial(self, key: str) -> Usage:
        """What a trial has taken, over all its attempts."""
        with self._lock:
            known, place = self._ended.get(key), self._places.get(key)
        if known is not None:
            return known
        return Usage() if place is None else usage_of(self._root / place)

    def total(self, phase: str | None = None) -> Usage:
        """Of all trials, those that run included, or of those that belong to a phase."""
        with self._lock:
            total = sum((usage for name, usage in self._sums.items() if phase in (None, name)), start=Usage())
            places = [self._places[key] for key in self._open if phase in (None, self._phase(key))]
        for place in places:
            total += usage_of(self._root / place)
        return total

    def _end(self, key: str, usage: Usage) -> None:
        before = self._ended.get(key, Usage())
        self._open.pop(key, None)
        self._ended[key] = usage
        self._sums[self._phase(key)] += usage - before

    def _phase(self, key: str) -> str:
        return self._places.get(key, "").split("/")[0]


def journalled(entry: Mapping[str, Any]) -> Usage | None:
    """The usage that an event holds; None where it holds none."""
    return Usage.parse(entry["usage"]) if entry.get("usage") else None
