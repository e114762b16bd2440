"""The journal of a study: one JSON line per event, fsynced, append-only. It is the truth about what has run.

Events:
    study      once, first: the study as data, so that a later command can tell whether it means the same one
    phase      once for each phase: the same
    hypothesis once for each hypothesis: the same
    protocol   once, before the first run: seeds, metric, controls
    deviation  a later command has other rules than the one before
    started    a trial begins (again)
    finished   a trial has ended, with its results
    failed     a trial has ended without results, with the reason
    stopped    a trial was stopped early, with epoch, score and what it would have needed
    promoted   a phase was decided, with the reasons
    confirming what runs again with fresh seeds was decided
    tracked    a finished trial stands complete in the tracker
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from raydet.errors import StudyError

NAME = "journal.jsonl"


class Events:
    """What a journal says."""

    def __init__(self, entries: Iterable[dict[str, Any]]) -> None:
        self.events = list(entries)

    def of(self, event: str) -> list[dict[str, Any]]:
        """All events of one kind, oldest first."""
        return [entry for entry in self.events if entry["event"] == event]

    def results(self) -> dict[str, dict[str, Any]]:
        """Results of the finished trials by trial key."""
        return {entry["key"]: entry["results"] for entry in self.of("finished")}


def read_journal(directory: Path) -> Events:
    """The events so far, without a lock and without a trace; none where there is no journal."""
    path = directory / NAME
    if not path.exists():
        return Events([])
    content = path.read_bytes()
    return Events(_entries(path, content[: content.rfind(b"\n") + 1]))


class Journal(Events):
    """Open for writing, by one driver at a time."""

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
            super().__init__(_entries(self.path, self._whole_lines()))
            self._num_read = len(self.events)
        except StudyError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    @property
    def new_events(self) -> list[dict[str, Any]]:
        """What this process has written."""
        return self.events[self._num_read :]

    def append(self, event: str, **fields: Any) -> None:
        """Write one event; when this returns, it survives a power cut."""
        entry = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        with self._lock:  # the tracking thread writes too
            self._file.write((json.dumps(entry) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self.events.append(entry)

    def _whole_lines(self) -> bytes:
        """A driver that was killed while writing leaves a line without an end: it never happened."""
        self._file.seek(0)
        content = self._file.read()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            self._file.truncate(end)
        return content[:end]


def _entries(path: Path, lines: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise StudyError(f"{path}:{number}: not a journal line ({error}); the file was edited") from error
