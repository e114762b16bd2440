"""The interface of a tracker, and a tracker that does nothing.

Only one process writes: the driver of a study, or the controller of a single run. Workers do not access the tracking
server, so their number does not affect the number of runs, and they do not need the server's credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from raydet.track.datasets import Dataset

RunStatus = Literal["finished", "failed", "killed"]


Upload = Literal["none", "best", "all"]
"""Which checkpoints of a run are copied to the tracker; it knows of the others by name, path and hash."""


@dataclass(frozen=True, slots=True)
class TrackedCheckpoint:
    """A checkpoint that a run has kept."""

    path: Path
    epoch: int
    """Epochs completed."""
    sha256: str
    """As in its manifest."""
    metrics: Mapping[str, float]
    """Of the evaluation after that epoch, on the validation set."""
    is_uploaded: bool
    """Whether its files are copied to the tracker."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run in the tracker."""

    name: str
    status: RunStatus | None
    """None: the run has not been closed."""
    metrics: Mapping[str, float]
    """Latest value of each metric, by the tracker's own name for it."""
    own_name: Callable[[str], str] = str
    """The tracker's name of a metric."""

    def metric(self, name: str) -> float | None:
        """Latest value of a metric, by our name; None: it was not logged."""
        return self.metrics.get(self.own_name(name))


class Tracker(Protocol):
    """Every call may be repeated without logging anything twice, so a restarted command continues the same run."""

    def open_run(self, name: str, *, identity: str, parent: str | None = None) -> str:
        """The id of the run with this `identity`; creates the run if there is none."""

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log the parameters of a run."""

    def log_history(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log metrics of epochs; each row has an `epoch`. Values that are not finite numbers are left out."""

    def log_summary(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log metrics of the whole run."""

    def log_datasets(self, run_id: str, datasets: Sequence[Dataset]) -> None:
        """Log what a run is trained and validated on."""

    def log_checkpoints(
        self, run_id: str, checkpoints: Sequence[TrackedCheckpoint], *, kind: str, validation: Dataset
    ) -> None:
        """Log the checkpoints of a run with their metrics on `validation`, after those of its epochs.

        Args:
            kind: of the task, by which checkpoints of several runs are compared.
        """

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Log a text as an artifact."""

    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """Log a table as an artifact that the UI can display (`path` ends in .json)."""

    def find_run(self, identity: str) -> str | None:
        """The id of the run with this `identity`; None if there is none."""

    def log_files(self, run_id: str, files: Sequence[Path], *, root: Path, folder: str) -> None:
        """Log files as artifacts below `folder`, with their paths relative to `root`; replaces older ones.

        Raises:
            TrackingError: the files cannot be stored.
        """

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""

    def describe(self, run_id: str, sentences: Sequence[str]) -> None:
        """Set the description of a run and of its experiment."""

    def close_run(self, run_id: str, status: RunStatus) -> None:
        """Set the final status of a run."""

    def runs(self) -> Iterable[RunView]:
        """All runs of the experiment."""


class NullTracker:
    """A tracker that does nothing."""

    def open_run(self, name: str, *, identity: str, parent: str | None = None) -> str:
        return ""

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None: ...

    def log_history(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def log_summary(self, run_id: str, metrics: Mapping[str, float]) -> None: ...

    def log_datasets(self, run_id: str, datasets: Sequence[Dataset]) -> None: ...

    def log_checkpoints(
        self, run_id: str, checkpoints: Sequence[TrackedCheckpoint], *, kind: str, validation: Dataset
    ) -> None: ...

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
