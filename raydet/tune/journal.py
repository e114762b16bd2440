"""The journal of a study: one JSON line per event, fsynced, append-only. It is the truth about what has run.

Events:
    study      once, first: the study as data, so that a later command can tell whether it means the same one
    phase      once for each phase: the same
    hypothesis once for each hypothesis: the same
    protocol   once, before the first run: seeds, metric, controls
    deviation  a later command has other rules than the one before
    started    a trial begins (again), with its place below the study's directory
    finished   a trial has ended, with its results
    failed     a trial has ended without results, with the reason
    stopped    a trial was stopped early, with epoch, score and what it would have needed
    promoted   a phase was decided, with the reasons
    confirming what runs again with fresh seeds was decided
    tracked    a finished trial stands complete in the tracker
    overspent  the budget was spent: no trial was started any more, what was running has saved

`finished`, `failed` and `stopped` hold the `usage` of the trial: seconds of workers, over all of its attempts so far.
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


class Events:
    """What a journal says. Looking up a kind of event or a trial takes no longer in a long journal."""

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
        """Results of the finished trials by trial key."""
        return {entry["key"]: entry["results"] for entry in self.of("finished")}

    def _add(self, entry: dict[str, Any]) -> None:
        self.events.append(entry)
        self._of_event[entry["event"]].append(entry)
        if "key" in entry:
            self._of_trial[entry["key"]].append(entry)


def read_journal(directory: Path) -> Events:
    """The events so far, without a lock and without a trace; none where there is no journal."""
    path = directory / NAME
    if not path.exists():
        return Events([])
    with path.open("rb") as file:
        return Events(_entries(path, file))


class Journal(Events):
    """Open for writing, by one driver at a time.

    What a trial's epochs were stays in the file alone, once it is in the tracker: of thousands of trials it would not
    fit into memory.
    """

    def __init__(self, directory: Path) -> None:
        """Open the journal of the study in `directory`, or begin one.

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
        """What this process has written about a trial."""
        return self.about(key)[self._num_known.get(key, 0) :]

    def append(self, event: str, **fields: Any) -> None:
        """Write one event; when this returns, it survives a power cut."""
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
        """A driver that was killed while writing leaves a line without an end: it never happened."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        whole = sum(len(line) for line in self._file if line.endswith(b"\n"))
        if whole != size:
            self._file.truncate(whole)


def _entries(path: Path, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):  # torn: it never happened
            return
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise StudyError(f"{path}:{number}: not a journal line ({error}); the file was edited") from error
