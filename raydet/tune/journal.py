"""The journal of a study: one JSON line per event, fsynced, append-only. It is the record of what has run.

Events:
    study                  once, first: the study's settings, which every later command must match
    phase                  once per phase: its settings
    hypothesis             once per hypothesis: its settings
    protocol               once, before the first trial: seeds, metric, controls
    deviation              a command changes the protocol
    started                a trial starts or resumes, with its directory relative to the study's
    finished               a trial has finished, with its results
    failed                 a trial has failed, with the reason
    stopped                a trial was stopped early, with epoch, score and the score that it needed
    promoted               the values promoted to a phase, with the reasons
    confirmation_selected  the cells that run again with fresh seeds
    tracked                a finished trial is complete in the tracker
    budget_exhausted       the budget is spent: running trials have saved, no further trial starts

`finished`, `failed` and `stopped` hold the `usage` of the trial: worker-seconds over all of its attempts so far.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from raydet.errors import StudyError
from raydet.runs.results import RunResults
from raydet.runs.usage import Usage

NAME = "journal.jsonl"
RENAMED_EVENTS = {"confirming": "confirmation_selected", "overspent": "budget_exhausted"}
"""Current names of events, by their names in older journals."""


@dataclass(slots=True)
class Event:
    """One event of a study."""

    kind: str
    time: str
    """UTC."""
    data: Mapping[str, Any]
    """All other fields, as in the file, without the results."""
    results: RunResults | None = None
    """Of `finished`."""

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> Self:
        """Read a line of this version or an older one, in this version's names."""
        data = dict(entry)
        kind, results = data.pop("event"), data.pop("results", None)
        for factor in data.get("settings", {}).get("factors", []):
            if "twins" in factor:
                factor["equivalent_values"] = factor.pop("twins")
        return cls(
            RENAMED_EVENTS.get(kind, kind),
            data.pop("time", ""),
            data,
            None if results is None else RunResults.parse(results),
        )

    def __getitem__(self, field: str) -> Any:
        return self.data[field]

    @property
    def key(self) -> str:
        """Key of the trial; empty in an event of the study."""
        return str(self.data.get("key", ""))

    @property
    def name(self) -> str:
        return str(self.data["name"])

    @property
    def usage(self) -> Usage | None:
        """Usage of the trial over all of its attempts; None: not recorded, as in older journals."""
        return Usage.parse(self.data["usage"]) if self.data.get("usage") else None


class Events:
    """The events of a journal, indexed by kind and by trial: look-up time does not grow with the journal."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events: list[Event] = []
        self._of_kind: defaultdict[str, list[Event]] = defaultdict(list)
        self._of_trial: defaultdict[str, list[Event]] = defaultdict(list)
        for event in events:
            self._add(event)

    def of(self, kind: str) -> list[Event]:
        """All events of one kind, oldest first."""
        return list(self._of_kind.get(kind, ()))

    def about(self, key: str) -> list[Event]:
        """All events of one trial, oldest first."""
        return list(self._of_trial.get(key, ()))

    def results(self) -> dict[str, RunResults]:
        """Results of the finished trials by key."""
        return {event.key: event.results for event in self.of("finished") if event.results is not None}

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self._of_kind[event.kind].append(event)
        if event.key:
            self._of_trial[event.key].append(event)


def read_journal(directory: Path) -> Events:
    """The events so far, read without a lock; none if there is no journal."""
    path = directory / NAME
    if not path.exists():
        return Events([])
    with path.open("rb") as file:
        return Events(_read_events(path, file))


class Journal(Events):
    """A journal open for writing, by one driver at a time.

    Once a trial is tracked, its epochs are dropped from memory and remain in the file only: those of thousands of
    trials would not fit.
    """

    def __init__(self, directory: Path) -> None:
        """Open the journal of the study in `directory`; create it if there is none.

        Raises:
            StudyError: another driver has it open, or the directory cannot be written.
        """
        self.path = directory / NAME
        self._lock = threading.Lock()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StudyError(f"another process is running this study ({self.path}); wait for it") from None
        except OSError as error:
            raise StudyError(
                f"cannot write the study directory {directory}: {error.strerror}; choose another with --storage"
            ) from error
        try:
            self._file.seek(0)
            super().__init__(_read_events(self.path, self._file))
            self._drop_torn_line()
            self._num_known = {key: len(events) for key, events in self._of_trial.items()}
        except StudyError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def new_about(self, key: str) -> list[Event]:
        """The events of a trial that this process has written."""
        return self.about(key)[self._num_known.get(key, 0) :]

    def append(self, kind: str, results: RunResults | None = None, **fields: Any) -> None:
        """Write one event; it is on disk when this returns."""
        event = Event(kind, datetime.now(UTC).isoformat(timespec="milliseconds"), fields, results)
        entry = {"event": kind, "time": event.time, **fields}
        if results is not None:
            entry["results"] = results.as_json()
        with self._lock:  # the tracking thread writes too
            self._file.write((json.dumps(entry) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._add(event)

    def _add(self, event: Event) -> None:
        super()._add(event)
        if event.kind == "tracked":
            for known in self._of_trial[event.key]:
                if known.results is not None:
                    known.results = replace(known.results, history=())

    def _drop_torn_line(self) -> None:
        """Remove the incomplete last line that a driver leaves if it is killed while writing."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        complete = sum(len(line) for line in self._file if line.endswith(b"\n"))
        if complete != size:
            self._file.truncate(complete)


def _read_events(path: Path, lines: Iterable[bytes]) -> Iterator[Event]:
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):  # the writer was killed: the event does not count
            return
        try:
            yield Event.parse(json.loads(line))
        except json.JSONDecodeError as error:
            raise StudyError(f"{path}:{number}: not a journal line ({error}); the file was edited") from error
