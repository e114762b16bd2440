"""What is tracked of a run: parameters at its start, metrics while it runs, tables and paths at its end."""

from __future__ import annotations

import getpass
import importlib.util
import json
import math
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from raydet.config import Experiment, ShardsSource, flatten
from raydet.errors import TrackingError
from raydet.runs.results import Number, RunResults
from raydet.track.base import NullTracker, RunView, TrackedCheckpoint, Tracker, Upload
from raydet.track.datasets import datasets_of

SQLITE = "mlflow.db"
GIT_S = 5.0
"""How long git may take to tell the commit of the code."""


def open_tracker(uri: str | None, *, directory: Path, experiment: str, command: str | None = None) -> Tracker:
    """The tracker of a command.

    Args:
        uri: MLflow tracking URI; None: a sqlite file in `directory`; "none": no tracking.
        command: what starts the runs, e.g. "raydet train": shown beside them, with the user and the commit of raydet.

    Raises:
        TrackingError: mlflow is not installed, or the server cannot be used.
    """
    if uri == "none":
        return NullTracker()
    if importlib.util.find_spec("mlflow") is None:
        raise TrackingError("mlflow is not installed; install it, or pass --tracking-uri none")
    from raydet.track.mlflow import MLflowTracker
    from raydet.track.sqlite import sqlite_uri

    tags = {} if command is None else _source_tags(command)
    return MLflowTracker(uri or sqlite_uri(directory / SQLITE), experiment, tags=tags)


def _source_tags(command: str) -> dict[str, str]:
    """MLflow's own tags of where a run comes from, which its other clients set too."""
    tags = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # no name belongs to this user's number, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    code = Path(__file__).parent
    git = ["git", "-C", str(code)]
    with suppress(OSError, subprocess.SubprocessError):  # no git, or raydet was installed without it
        # An environment within a repository of something else does not count.
        tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, check=True, capture_output=True, timeout=GIT_S)
        described = [*git, "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
        said = subprocess.run(described, check=True, capture_output=True, text=True, timeout=GIT_S).stdout
        commit, _, is_dirty = said.strip().partition("-")
        tags["mlflow.source.git.commit"] = commit
        tags["mlflow.source.git.dirty"] = "true" if is_dirty else "false"
    return tags


def runs_by_name(uri: str | None, *, directory: Path, experiment: str) -> dict[str, list[RunView]] | None:
    """The runs of an existing tracker by name, see `open_tracker`; None if there is none.

    Raises:
        TrackingError: the server cannot be used.
    """
    tracker = existing_tracker(uri, directory=directory, experiment=experiment)
    if tracker is None:
        return None
    runs: dict[str, list[RunView]] = {}
    for run in tracker.runs():
        runs.setdefault(run.name, []).append(run)
    return runs


def existing_tracker(uri: str | None, *, directory: Path, experiment: str) -> Tracker | None:
    """The tracker that a study's command has used, see `open_tracker`; None if it has tracked nothing."""
    if uri is None and not (directory / SQLITE).exists():
        return None
    tracker = open_tracker(uri, directory=directory, experiment=experiment)
    return None if isinstance(tracker, NullTracker) else tracker


def track_report(
    tracker: Tracker, phase: str, files: Sequence[Path], *, root: Path, conclusions: Sequence[str]
) -> None:
    """Log a study's report to the run of its newest phase, if that is tracked.

    Args:
        files: files of the report, within `root`.
        conclusions: the most important first; shown above the runs.

    Raises:
        TrackingError: the server refuses.
    """
    run_id = tracker.find_run(phase)
    if run_id is not None:
        tracker.log_files(run_id, files, root=root, folder="report")
        tracker.set_tags(run_id, {"raydet.report": str(root)})
        tracker.describe(run_id, conclusions)


def begin_run(
    tracker: Tracker,
    experiment: Experiment,
    *,
    name: str,
    identity: str,
    parent: str | None = None,
    labels: Mapping[str, Any] | None = None,
) -> str:
    """Open (or continue) a run and log its parameters: every value of the config by path, and simulated modalities.

    Its data sets are logged, too, unless their hash is not known before the end.

    Args:
        labels: further parameters, e.g. the values of a study's factors.
    """
    run_id = tracker.open_run(name, identity=identity, parent=parent)
    params = dict(labels or {}) | dict(flatten(experiment.model_dump(mode="json")))
    tracker.log_params(run_id, params | {"data.simulated": ", ".join(experiment.data.simulated) or "nothing"})
    if not _is_hash_unknown(experiment):
        tracker.log_datasets(run_id, datasets_of(experiment))
    tracker.log_text(run_id, experiment.to_json(), "config.json")
    return run_id


def _is_hash_unknown(experiment: Experiment) -> bool:
    """Whether only the results tell which converted set was read."""
    source = experiment.data.source
    return isinstance(source, ShardsSource) and source.sha256 is None


class Hours(Protocol):
    """The usage of a run, see `raydet.runs.usage.Usage`."""

    @property
    def gpu_hours(self) -> float: ...

    @property
    def cpu_worker_hours(self) -> float: ...


def log_usage(tracker: Tracker, run_id: str, usage: Hours | None, *, study: Hours | None = None) -> None:
    """Log hours of GPUs and of workers without a GPU, where there are any.

    Args:
        usage: usage of the run, or of all of its child runs; None: unknown.
        study: usage of all runs of the study.
    """
    hours: dict[str, float] = {}
    for prefix, taken in (("", usage), ("study_", study)):
        if taken is not None:
            hours[f"{prefix}gpu_hours"] = taken.gpu_hours
            hours[f"{prefix}cpu_worker_hours"] = taken.cpu_worker_hours
    tracker.log_summary(run_id, {name: value for name, value in hours.items() if value > 0})


def end_run(
    tracker: Tracker,
    run_id: str,
    experiment: Experiment,
    *,
    run_dir: Path,
    checkpoints: Iterable[Path],
    results: RunResults,
    usage: Hours | None = None,
    upload: Upload = "none",
) -> None:
    """Log the results of a finished run, and close it.

    Args:
        checkpoints: the intact ones, newest first; only read where something is tracked, as finding out takes time.
        upload: which of them are copied to the tracker.
    """
    checkpoints = [] if isinstance(tracker, NullTracker) else list(checkpoints)
    tracker.log_history(run_id, [row.as_json() for row in results.history])
    log_usage(tracker, run_id, usage)
    times = {"wall_s": results.wall_s, "loop_s": results.loop_s}
    tracker.log_summary(run_id, {name: value for name, value in times.items() if value})
    tracker.log_table(run_id, metrics_table(results), "metrics_table.json")
    for name in ("model_info.json", "final_results.json", "metrics_per_epoch.csv", "training.log"):
        if (run_dir / name).exists():
            tracker.log_text(run_id, (run_dir / name).read_text(), name)
    tags = {"raydet.run_dir": str(run_dir), "raydet.fingerprint": results.fingerprint}
    if results.data:  # the config does not describe a data set that was passed in, not named by --data
        tracker.log_params(run_id, {f"data.{key}": value for key, value in results.data.items()})
    datasets = datasets_of(experiment, sha256=(results.data or {}).get("sha256"))
    if _is_hash_unknown(experiment):
        tracker.log_datasets(run_id, datasets)
    if checkpoints:
        tags["raydet.checkpoint"] = str(checkpoints[0])
        tracker.log_text(run_id, (checkpoints[0] / "manifest.json").read_text(), "checkpoint_manifest.json")
        tracked = _tracked_checkpoints(checkpoints, results, upload)
        tracker.log_checkpoints(run_id, tracked, kind=experiment.task.kind, validation=datasets[1])
    tracker.set_tags(run_id, tags)
    tracker.close_run(run_id, "finished")


def _tracked_checkpoints(
    checkpoints: Sequence[Path], results: RunResults, upload: Upload
) -> list[TrackedCheckpoint]:
    """The checkpoints at the end of epochs that were evaluated, oldest first."""
    rows = {row.epoch: row for row in results.history}
    tracked, scores = [], {}
    for path in sorted(checkpoints):
        manifest = json.loads((path / "manifest.json").read_text())
        epoch = path.name.removeprefix("epoch_")
        if not epoch.isdigit() or int(epoch) not in rows:  # within an epoch
            continue
        metrics = {
            name: float(value)
            for name, value in rows[int(epoch)].metrics.items()
            if value is not None and not name.startswith("system/")
        }
        tracked.append(TrackedCheckpoint(path, int(epoch), manifest["sha256"], metrics, upload == "all"))
        scores[path] = -math.inf if manifest["score"] is None else manifest["score"]
    if upload == "best" and tracked:
        best = max(tracked, key=lambda checkpoint: (scores[checkpoint.path], checkpoint.epoch))
        tracked[tracked.index(best)] = replace(best, is_uploaded=True)
    return tracked


def metrics_table(results: RunResults) -> Sequence[Mapping[str, Number | str]]:
    """The metrics of the last and of the best epoch, those of single classes included."""
    names = [name for name in results.final.metrics if not name.startswith("system/")]
    return [
        {"metric": name, "last epoch": results.final[name], "best epoch": results.best[name]}
        for name in names
    ]
