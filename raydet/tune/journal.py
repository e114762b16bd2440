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
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from raydet.errors import StudyError

NAME = "journal.jsonl"
RENAMED_EVENTS = {"confirming": "confirmation_selected", "overspent": "budget_exhausted"}
"""Current names of events, by their names in older journals."""


class Events:
    """The events of a journal, indexed by kind and by trial: look-up time does not grow with the journal."""

    def __init__(self, entries: Iterable[dict[str, Any]]) -> None:
        self.events: list[dict[str, Any]] = []
        self._of_event: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._of_trial: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in entries:
            self._add(entry)

    def of(self, event: str) -> list[dict[str, Any]]:
        """All events of one kind, oldest first."""
        return list(self._of_event.get(event, ()))

    def about(self, key: str) -> list[dict[str, Any]]:
        """All events of one trial, oldest first."""
        return list(self._of_trial.get(key, ()))

    def results(self) -> dict[str, dict[str, Any]]:
        """Results of the finished trials by key."""
        return {entry["key"]: entry["results"] for entry in self.of("finished")}

    def _add(self, entry: dict[str, Any]) -> None:
        self.events.append(entry)
        self._of_event[entry["event"]].append(entry)
        if "key" in entry:
            self._of_trial[entry["key"]].append(entry)


def read_journal(directory: Path) -> Events:
    """The events so far, read without a lock; none if there is no journal."""
    path = directory / NAME
    if not path.exists():
        return Events([])
    with path.open("rb") as file:
        return Events(_entries(path, file))


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
            super().__init__(_entries(self.path, self._file))
            self._drop_torn_line()
            self._num_known = {key: len(entries) for key, entries in self._of_trial.items()}
        except StudyError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def new_about(self, key: str) -> list[dict[str, Any]]:
        """The events of a trial that this process has written."""
        return self.about(key)[self._num_known.get(key, 0) :]

    def append(self, event: str, **fields: Any) -> None:
        """Write one event; it is on disk when this returns."""
        entry = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        with self._lock:  # the tracking thread writes too
            self._file.write((json.dumps(entry) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._add(entry)

    def _add(self, entry: dict[str, Any]) -> None:
        super()._add(entry)
        if entry["event"] == "tracked":
            for known in self.about(entry["key"]):
                if known["event"] == "finished":
                    known["results"] = {
                        name: value for name, value in known["results"].items() if name != "history"
                    }

    def _drop_torn_line(self) -> None:
        """Remove the incomplete last line that a driver leaves if it is killed while writing."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        complete = sum(len(line) for line in self._file if line.endswith(b"\n"))
        if complete != size:
            self._file.truncate(complete)


def _entries(path: Path, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):  # the writer was killed: the event does not count
            return
        try:
            yield _with_current_names(json.loads(line))
        except json.JSONDecodeError as error:
            raise StudyError(f"{path}:{number}: not a journal line ({error}); the file was edited") from error


def _with_current_names(entry: dict[str, Any]) -> dict[str, Any]:
    """An event of this version or an older one, in this version's names."""
    entry["event"] = RENAMED_EVENTS.get(entry["event"], entry["event"])
    for factor in entry.get("settings", {}).get("factors", []):
        if "twins" in factor:
            factor["equivalent_values"] = factor.pop("twins")
    return entry
