"""The files of a run directory.

config.json            the resolved experiment; starts the same run again
model_info.json        the model, its batches and the machine; see `ModelInfo`
training.log           log of the main worker
progress.json          current state of the loop, for a progress bar in another process; see `Progress`
usage.json             start, end and workers of every attempt; see `raydet.runs.usage`
metrics_per_batch.csv  losses of every optimizer step
metrics_per_epoch.csv  losses, metrics and times of every epoch
records.npz            what the last evaluation's metrics can be computed from again, for comparisons; see
                       `raydet.metrics.records`
final_records.npz      the same of what was measured at the end only, such as anomalies
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
from typing import TYPE_CHECKING, TypedDict

from raydet.config import Experiment
from raydet.errors import ConfigError
from raydet.redact import RedactingFormatter
from raydet.runs.results import EpochRow, RunResults

if TYPE_CHECKING:
    from raydet.metrics.records import Records

CONFIG = "config.json"
FINAL_RESULTS = "final_results.json"
MODEL_INFO = "model_info.json"
PROGRESS = "progress.json"
PROGRESS_INTERVAL_S = 0.5

logger = logging.getLogger("raydet")


class Progress(TypedDict):
    """The contents of progress.json."""

    epoch: int
    """The current epoch, from 1."""
    epochs: int
    step: int
    """Optimizer steps completed."""
    total_steps: int
    loss: float
    """Of the last step."""
    images_per_s: float
    eta_s: float


class ModelInfo(TypedDict, total=False):
    """The contents of model_info.json; that of an older raydet may lack some fields."""

    parameters: Mapping[str, int]
    """By part of the model, and in `total`."""
    gflops: Mapping[str, float]
    """10^9 operations of a forward pass per image, by part of the model, and in `total`."""
    layout: Mapping[str, object]
    train_images: int
    val_images: int
    ignored_objects: Mapping[str, int]
    """Number of objects in the source that are left out by a rule, by rule."""
    simulated: Sequence[str]
    steps_per_epoch: int
    global_batch: int
    micro_batch: int
    accumulation: int
    workers: int
    device: str
    cpu: str
    threads: int
    raydet: str
    torch: str
    torchvision: str
    python: str
    pretrained: Mapping[str, object] | None
    data: Mapping[str, str] | None
    """Hashes of a converted set."""


def check_run_directory(run_dir: Path, experiment: Experiment) -> None:
    """Check that a directory is free or belongs to this run; writes nothing.

    Raises:
        ConfigError: it belongs to a run with another config, or cannot be read.
    """
    path = run_dir / CONFIG
    try:
        if not path.exists():
            return
        existing = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"cannot read the run directory {run_dir}: {error.strerror}; choose another"
        ) from error
    if Experiment.from_json(existing, where=str(path)) != experiment:
        raise ConfigError(f"{run_dir} holds a run with another config ({path}); choose another directory")


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
    except OSError as error:
        raise ConfigError(
            f"cannot write the run directory {run_dir}: {error.strerror}; choose another"
        ) from error
    check_run_directory(run_dir, experiment)


def finished_results(run_dir: Path) -> RunResults | None:
    """The results of a finished run; None: it has not finished."""
    path = run_dir / FINAL_RESULTS
    return RunResults.parse(json.loads(path.read_text())) if path.exists() else None


def recorded_model_info(run_dir: Path) -> ModelInfo:
    """The model_info.json of an earlier attempt; empty if there was none."""
    path = run_dir / MODEL_INFO
    return json.loads(path.read_text()) if path.exists() else {}


def read_progress(run_dir: Path) -> Progress | None:
    """The current state of a loop that may run in another process; None: nothing yet."""
    try:
        return json.loads((run_dir / PROGRESS).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


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
        if self.enabled:
            logger.removeHandler(self._log)
            self._log.close()

    def model_info(self, info: ModelInfo) -> None:
        """Write model_info.json."""
        self._write_json(MODEL_INFO, info)

    def batches(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Append to metrics_per_batch.csv; the first call drops later rows of an interrupted attempt."""
        if not self.enabled:
            return
        path = self.run_dir / "metrics_per_batch.csv"
        if self._has_batches:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, rows[0].keys()).writerows(rows)
            return
        earlier: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                earlier = [row for row in csv.DictReader(file) if int(row["step"]) < rows[0]["step"]]
        write_atomically(path, _as_csv([*earlier, *rows]))
        self._has_batches = True

    def rewind(self) -> None:
        """Let the next rows replace those from their step on: the run goes back to an earlier step."""
        self._has_batches = False

    def epochs(self, history: Sequence[EpochRow]) -> None:
        """Rewrite metrics_per_epoch.csv."""
        if self.enabled:
            text = _as_csv([row.as_json() for row in history])
            write_atomically(self.run_dir / "metrics_per_epoch.csv", text)

    def progress(self, values: Progress, *, force: bool = False) -> None:
        """Write progress.json, at most twice a second."""
        now = time.monotonic()
        if self.enabled and (force or now - self._last_progress >= PROGRESS_INTERVAL_S):
            self._last_progress = now
            self._write_json(PROGRESS, values)

    def records(self, records: Records, *, is_final: bool = False) -> None:
        """Write records.npz, or final_records.npz."""
        if self.enabled:
            from raydet.metrics.records import FINAL_RECORDS, RECORDS, write_records

            write_records(self.run_dir / (FINAL_RECORDS if is_final else RECORDS), records)

    def results(self, results: RunResults) -> None:
        """Write final_results.json, which marks the run as finished."""
        self._write_json(FINAL_RESULTS, results.as_json())

    def _write_json(self, name: str, values: Mapping[str, object]) -> None:
        if self.enabled:
            write_atomically(self.run_dir / name, json.dumps(values, indent=2) + "\n")


def _as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
