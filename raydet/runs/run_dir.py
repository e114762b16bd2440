"""The files of a run directory.

config.json            the resolved experiment; starts the same run again
model_info.json        parameters, pretrained weights, operations per image (forward, billions), data (hashes
                       of a converted set), batch, CPU and threads, versions; which modalities are simulated (in
                       final_results.json as well)
training.log           log of the main worker
progress.json          current state of the loop, for a progress bar in another process
usage.json             start, end and workers of every attempt; see `raydet.runs.usage`
metrics_per_batch.csv  losses of every optimiser step
metrics_per_epoch.csv  losses, metrics and times of every epoch
records.npz            what the last evaluation's metrics can be computed from again, for comparisons; see
                       `raydet.metrics.records`
final_results.json     metrics of the last epoch, the best epoch, AP per class, their cost
non_finite_step_...    inputs of a step whose loss was not finite, and the diagnosis
checkpoints/           see `raydet.checkpoint.load`
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydet.config import Experiment
from raydet.errors import ConfigError
from raydet.redact import RedactingFormatter
from raydet.runs.results import EpochRow, RunResults

if TYPE_CHECKING:
    from raydet.metrics.records import Records

CONFIG = "config.json"
FINAL_RESULTS = "final_results.json"
PROGRESS = "progress.json"
PROGRESS_INTERVAL_S = 0.5

logger = logging.getLogger("raydet")


def claim_run_directory(run_dir: Path, experiment: Experiment) -> None:
    """Create the run directory and write its config, or check that the directory belongs to this run.

    Raises:
        ConfigError: the directory cannot be written, or belongs to a run with another config.
    """
    path = run_dir / CONFIG
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomically(path, experiment.to_json())
        existing = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"cannot write the run directory {run_dir}: {error.strerror}; choose another"
        ) from error
    if Experiment.from_json(existing, where=str(path)) != experiment:
        raise ConfigError(f"{run_dir} holds a run with another config ({path}); choose another directory")


def finished_results(run_dir: Path) -> RunResults | None:
    """The results of a finished run; None: it has not finished."""
    path = run_dir / FINAL_RESULTS
    return RunResults.parse(json.loads(path.read_text())) if path.exists() else None


def recorded_model_info(run_dir: Path) -> dict[str, Any]:
    """The model_info.json of an earlier attempt; empty if there was none."""
    path = run_dir / "model_info.json"
    info: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return info


def read_progress(run_dir: Path) -> dict[str, Any] | None:
    """The current state of a loop that may run in another process; None: nothing yet."""
    try:
        progress: dict[str, Any] = json.loads((run_dir / PROGRESS).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return progress


def last_progress(run_dir: Path) -> float:
    """Time of the last training progress as Unix time; 0: never."""
    try:
        return (run_dir / PROGRESS).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see its old or its new content, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


class RunRecord:
    """Writes a run's files; does nothing on ranks other than 0 (`enabled=False`)."""

    def __init__(self, run_dir: Path, *, enabled: bool) -> None:
        self.run_dir = run_dir
        self.enabled = enabled
        self._last_progress = 0.0
        self._has_batches = False
        if enabled:
            self._log = logging.FileHandler(run_dir / "training.log")
            self._log.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(self._log)
            logger.setLevel(logging.INFO)

    def close(self) -> None:
        """Release the log file."""
        if self.enabled:
            logger.removeHandler(self._log)
            self._log.close()

    def model_info(self, info: Mapping[str, Any]) -> None:
        """Write model_info.json."""
        self._write_json("model_info.json", info)

    def batches(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append to metrics_per_batch.csv; the first call drops later rows of an interrupted attempt."""
        if not self.enabled:
            return
        path = self.run_dir / "metrics_per_batch.csv"
        if not self._has_batches:
            earlier: list[dict[str, Any]] = []
            if path.exists():
                with path.open(newline="") as file:
                    earlier = [row for row in csv.DictReader(file) if int(row["step"]) < rows[0]["step"]]
            write_atomically(path, _as_csv([*earlier, *rows]))
            self._has_batches = True
            return
        with path.open("a", newline="") as file:
            csv.DictWriter(file, rows[0].keys()).writerows(rows)

    def rewind(self) -> None:
        """Let the next rows replace those from their step on: the run goes back to an earlier step."""
        self._has_batches = False

    def epochs(self, history: Sequence[EpochRow]) -> None:
        """Rewrite metrics_per_epoch.csv."""
        if self.enabled:
            rows = [row.as_json() for row in history]
            write_atomically(self.run_dir / "metrics_per_epoch.csv", _as_csv(rows))

    def progress(self, values: Mapping[str, Any], *, force: bool = False) -> None:
        """Write progress.json, at most twice a second."""
        now = time.monotonic()
        if self.enabled and (force or now - self._last_progress >= PROGRESS_INTERVAL_S):
            self._last_progress = now
            self._write_json(PROGRESS, values)

    def records(self, records: Records) -> None:
        """Write records.npz."""
        if self.enabled:
            from raydet.metrics.records import RECORDS, write_records

            write_records(self.run_dir / RECORDS, records)

    def results(self, results: RunResults) -> None:
        """Write final_results.json, which marks the run as finished."""
        self._write_json(FINAL_RESULTS, results.as_json())

    def _write_json(self, name: str, values: Mapping[str, Any]) -> None:
        if self.enabled:
            write_atomically(self.run_dir / name, json.dumps(values, indent=2) + "\n")


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
