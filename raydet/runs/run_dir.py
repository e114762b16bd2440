"""The files of a run: what went in, how it went, what came out.

config.json            the resolved experiment; starts the same run again
model_info.json        parameters, pretrained weights, operations per image (forward, billions), data (hashes
                       of a converted set), batch, CPU and threads, versions; which modalities are simulated (in
                       final_results.json as well)
training.log           what the main worker logged
progress.json          the newest state of the loop, for a progress bar in another process
usage.json             when which workers were there, attempt by attempt; see `raydet.runs.usage`
metrics_per_batch.csv  losses of every optimiser step
metrics_per_epoch.csv  losses, metrics and times of every epoch
match_records.npz      which detection of which image was right in the last evaluation, for comparisons
final_results.json     metrics of the last epoch, the best epoch, AP per class, what they have cost
non_finite_step_...    the images of a step whose loss was not finite, as they were fed, and what was found
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

if TYPE_CHECKING:
    from raydet.metrics.matches import MatchRecords

CONFIG = "config.json"
FINAL_RESULTS = "final_results.json"
MATCH_RECORDS = "match_records.npz"
PROGRESS = "progress.json"
PROGRESS_INTERVAL_S = 0.5

logger = logging.getLogger("raydet")


def claim_run_directory(run_dir: Path, experiment: Experiment) -> None:
    """Make the run's directory and write its config, or check that it is this run's already.

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


def finished_results(run_dir: Path) -> dict[str, Any] | None:
    """What the run came to, if it has ended."""
    path = run_dir / FINAL_RESULTS
    if not path.exists():
        return None
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def recorded_model_info(run_dir: Path) -> dict[str, Any]:
    """What an earlier attempt wrote as model_info.json; empty where there was none."""
    path = run_dir / "model_info.json"
    info: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return info


def read_progress(run_dir: Path) -> dict[str, Any] | None:
    """The newest state of a loop that may run in another process."""
    try:
        progress: dict[str, Any] = json.loads((run_dir / PROGRESS).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return progress


def last_progress(run_dir: Path) -> float:
    """When somebody has trained last, as Unix time; 0: never."""
    try:
        return (run_dir / PROGRESS).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


class RunRecord:
    """Writes a run's files. On other ranks than 0 (`enabled=False`) every method does nothing."""

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
        """Append to metrics_per_batch.csv; the first call drops what an interrupted attempt wrote beyond it."""
        if not self.enabled:
            return
        path = self.run_dir / "metrics_per_batch.csv"
        if not self._has_batches:
            write_atomically(path, _as_csv([*_rows_before(path, rows[0]["step"]), *rows]))
            self._has_batches = True
            return
        with path.open("a", newline="") as file:
            csv.DictWriter(file, rows[0].keys()).writerows(rows)

    def rewind(self) -> None:
        """The run goes back to earlier steps: the next rows replace those from their step on."""
        self._has_batches = False

    def epochs(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics_per_epoch.csv anew."""
        if self.enabled:
            write_atomically(self.run_dir / "metrics_per_epoch.csv", _as_csv(history))

    def progress(self, values: Mapping[str, Any], *, force: bool = False) -> None:
        """Write progress.json, at most twice a second."""
        now = time.monotonic()
        if self.enabled and (force or now - self._last_progress >= PROGRESS_INTERVAL_S):
            self._last_progress = now
            self._write_json(PROGRESS, values)

    def matches(self, records: MatchRecords) -> None:
        """Write match_records.npz."""
        if self.enabled:
            records.save(self.run_dir / MATCH_RECORDS)

    def results(self, results: Mapping[str, Any]) -> None:
        """Write final_results.json: from here on the run has ended."""
        self._write_json(FINAL_RESULTS, results)

    def _write_json(self, name: str, values: Mapping[str, Any]) -> None:
        if self.enabled:
            write_atomically(self.run_dir / name, json.dumps(values, indent=2) + "\n")


def _rows_before(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) < step]


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
