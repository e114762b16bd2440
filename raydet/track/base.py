"""What a tracker can do, and the tracker that does nothing.

One process writes: the driver of a study, or the controller of a single run. The workers never talk to the tracking
server, so the number of workers cannot change the number of runs, and no worker needs the server's credentials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

RunStatus = Literal["finished", "failed", "killed"]


@dataclass(frozen=True, slots=True)
class RunView:
    """What a tracker knows of a run."""

    name: str
    status: RunStatus | None
    """None: it runs, or is thought to."""
    metrics: Mapping[str, float]
    """Newest values."""


class Tracker(Protocol):
    """Every call may be repeated: what is noted already is left alone, so a restart continues the same run."""

    def open_run(self, name: str, *, identity: str, parent: str | None = None) -> str:
        """The id of the run with this `identity`, made if there is none."""

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Note the inputs of a run."""

    def log_history(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Note numbers of epochs; each row names its `epoch`. What is no finite number is left out."""

    def log_summary(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Note numbers of the whole run."""

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Store a text as an artifact."""

    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Store a table as an artifact that the UI can show (`path` ends in .json)."""

    def find_run(self, identity: str) -> str | None:
        """The id of the run with this `identity`; None: there is none."""

    def log_files(self, run_id: str, files: Sequence[Path], *, root: Path, folder: str) -> None:
        """Store files as artifacts in a folder, where they lie within `root`; older ones are replaced.

        Raises:
            TrackingError: they cannot be stored.
        """

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Note where things lie."""

    def describe(self, run_id: str, sentences: Sequence[str]) -> None:
        """Say in words what a run, and with it the experiment, has come to; replaces what was said before."""

    def close_run(self, run_id: str, status: RunStatus) -> None:
        """The run has ended."""

    def runs(self) -> Iterable[RunView]:
        """All runs of the experiment."""


class NullTracker:
    """Tracks nothing."""

    def open_run(self, name: str, *, identity: str, parent: str | None = None) -> str:
        return ""

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None: ...

    def log_history(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def log_summary(self, run_id: str, metrics: Mapping[str, float]) -> None: ...

    def log_text(self, run_id: str, text: str, path: str) -> None: ...

    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], path: str) -> None: ...

    def find_run(self, identity: str) -> str | None:
        return None

    def log_files(self, run_id: str, files: Sequence[Path], *, root: Path, folder: str) -> None: ...

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None: ...

    def describe(self, run_id: str, sentences: Sequence[str]) -> None: ...

    def close_run(self, run_id: str, status: RunStatus) -> None: ...

    def runs(self) -> Iterable[RunView]:
        return ()
