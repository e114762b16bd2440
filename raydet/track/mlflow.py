"""The MLflow tracker: the only place that imports mlflow.

Files and numbers are logged, never MLflow model flavours, and nothing is ever loaded back as code.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read by mlflow at import: no telemetry, and an unreachable server is found in seconds, not minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from raydet.errors import TrackingError
from raydet.track.base import RunStatus, RunView

SQLITE = "sqlite:///"
IDENTITY_TAG = "raydet.identity"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: the UI draws the tree from it
NOTE_TAG = "mlflow.note.content"  # MLflow's own: Markdown, shown above the runs and above a run
KIND_TAG = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's own: training, not chats
MAX_PARAMS_PER_CALL = 100
MAX_METRICS_PER_CALL = 1000
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000
RUNS_PER_PAGE = 1000
PREFIXES = {
    "time.": (
        *("epoch", "train_s", "eval_s", "images_per_s", "wall_s", "loop_s"),
        *("gpu_hours", "cpu_worker_hours", "study_gpu_hours", "study_cpu_worker_hours"),
    ),
    "recall.": ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
}
"""The UI draws a chart per metric, in the order of the alphabet: with these before other names, losses and AP come
first. No slash stands there: what has one is put into a section of its own, above all that has none.
"""

_STATUS: dict[RunStatus, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_STATUS_OF = {theirs: ours for ours, theirs in _STATUS.items()}


class MLflowTracker:
    """Runs of one MLflow experiment."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Connect, and make the experiment if there is none.

        Args:
            uri: `sqlite:////absolute/path.db`, `http://host:port`, or whatever else MLflow takes.
            experiment: its name.

        Raises:
            TrackingError: the server cannot be reached or refuses.
        """
        # They announce every database migration and every retry.
        for name, level in (("mlflow", "WARNING"), ("alembic", "WARNING"), ("urllib3", "ERROR")):
            logging.getLogger(name).setLevel(level)
        self.uri = uri
        try:
            with _alone_with(uri):
                self._client = MlflowClient(uri)
                self._experiment = _experiment_id(self._client, uri, experiment)
        except Exception as error:  # MLflow lets SQLAlchemy's, requests' and its own errors through
            raise TrackingError(
                f"cannot use the tracking URI {_without_password(f'{uri}: {_first_line(error)}')}; "
                "start the server, or leave --tracking-uri out for a local sqlite file"
            ) from error
        self._logged_epochs: dict[str, set[int]] = {}

    def open_run(self, name: str, *, identity: str, parent: str | None = None) -> str:
        """See `Tracker`."""
        identity = identity.replace("'", "_")  # it stands between quotes in a search
        run = self._find(identity)
        if run is None:
            tags = {IDENTITY_TAG: identity} | ({PARENT_TAG: parent} if parent else {})
            run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        known = self._client.get_run(run_id).data.params
        new = [
            Param(key, _param_text(value)[:MAX_PARAM_LENGTH])
            for key, value in params.items()
            if key not in known
        ]
        for chunk in _chunks(new, MAX_PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=chunk)

    def log_history(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`."""
        logged = self._epochs_of(run_id)
        now = int(time.time() * 1000)
        metrics = [
            Metric(_metric_name(key), float(value), now, row["epoch"])
            for row in rows
            if row["epoch"] not in logged
            for key, value in sorted(row.items(), key=_by_interest)
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        for chunk in _chunks(metrics, MAX_METRICS_PER_CALL):
            self._client.log_batch(run_id, metrics=chunk)
        logged.update(row["epoch"] for row in rows)

    def log_summary(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        if not metrics:
            return
        now = int(time.time() * 1000)
        self._client.log_batch(
            run_id, metrics=[Metric(_metric_name(key), value, now, 0) for key, value in metrics.items()]
        )

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """See `Tracker`."""
        self._client.log_text(run_id, text, path)

    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """See `Tracker`."""
        # log_table would append to a table that is there already.
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        self._client.log_text(run_id, json.dumps(table), path)
        tag = f'[{{"path": "{path}", "type": "table"}}]'
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", tag)

    def find_run(self, identity: str) -> str | None:
        """See `Tracker`."""
        run = self._find(identity)
        return None if run is None else str(run.info.run_id)

    def log_files(self, run_id: str, files: Sequence[Path], *, root: Path, folder: str) -> None:
        """See `Tracker`."""
        try:
            for file in files:
                place = Path(folder) / file.parent.relative_to(root)
                self._client.log_artifact(run_id, str(file), place.as_posix())
        except Exception as error:  # as in the constructor
            raise TrackingError(
                f"cannot store {folder} in {_without_password(f'{self.uri}: {_first_line(error)}')}"
            ) from error

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """See `Tracker`."""
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def describe(self, run_id: str, sentences: Sequence[str]) -> None:
        """See `Tracker`."""
        note = "\n".join(f"- {_markdown(sentence)}" for sentence in sentences)[:MAX_TAG_LENGTH]
        self._client.set_tag(run_id, NOTE_TAG, note)
        self._client.set_experiment_tag(self._experiment, NOTE_TAG, note)

    def close_run(self, run_id: str, status: RunStatus) -> None:
        """See `Tracker`."""
        self._client.set_terminated(run_id, _STATUS[status])

    def runs(self) -> Iterator[RunView]:
        """See `Tracker`."""
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=RUNS_PER_PAGE, page_token=token)
            for run in page:
                yield RunView(run.info.run_name, _STATUS_OF.get(run.info.status), _our_metrics(run))
            token = page.token
            if not token:
                return

    def _find(self, identity: str) -> Run | None:
        found = self._client.search_runs(
            [self._experiment],
            filter_string=f"tags.`{IDENTITY_TAG}` = '{identity}'",
            run_view_type=ViewType.ACTIVE_ONLY,
            max_results=1,
        )
        return found[0] if found else None

    def _epochs_of(self, run_id: str) -> set[int]:
        if run_id not in self._logged_epochs:
            history = self._client.get_metric_history(run_id, _metric_name("epoch"))
            self._logged_epochs[run_id] = {metric.step for metric in history}
        return self._logged_epochs[run_id]


@contextmanager
def _alone_with(uri: str) -> Iterator[None]:
    """One process at a time: MLflow makes and migrates the tables of a sqlite file without a lock."""
    if not uri.startswith(SQLITE):
        yield
        return
    path = Path(uri.removeprefix(SQLITE))
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    existing = client.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    location = None
    if uri.startswith(SQLITE):  # else MLflow would use ./mlruns of whoever looks
        location = (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=KIND_TAG))
    except MlflowException:  # another driver was faster
        existing = client.get_experiment_by_name(name)
        if existing is None:
            raise
        return str(existing.experiment_id)


def _metric_name(key: str) -> str:
    if key.startswith("AP/"):  # a class name may hold a slash, too
        key = "per_class_AP." + key.removeprefix("AP/").replace("/", "_")
    start = next((prefix for prefix, keys in PREFIXES.items() if key in keys), "")
    return start + re.sub(r"[^\w\-. :/]", "_", key)


def _our_metrics(run: Run) -> dict[str, float]:
    """Under the names that they have outside of MLflow, but for the letters that it does not take."""
    ours = {_metric_name(key): key for keys in PREFIXES.values() for key in keys}
    return {ours.get(key, key): value for key, value in run.data.metrics.items()}


def _by_interest(item: tuple[str, Any]) -> int:
    """AP first: of the metrics of a run, the compare view of the UI takes that which was logged first."""
    return (not item[0].startswith("mAP")) + (_metric_name(item[0]) != item[0])


def _param_text(value: Any) -> str:
    """A list in one line: what is JSON, the UI spreads over a line per number."""
    return f"({', '.join(map(_param_text, value))})" if isinstance(value, list | tuple) else str(value)


def _markdown(text: str) -> str:
    """Names may hold what Markdown or HTML would take for a sign."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", text)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)
