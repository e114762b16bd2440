"""The MLflow tracker, the only module that imports mlflow.

It logs files and numbers, never MLflow model flavours, and loads nothing back as code. Checkpoints are external models:
MLflow knows their metrics and where they lie, and copies their files only if asked to.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

# Read by mlflow at import: no telemetry, and an unreachable server is detected in seconds, not minutes. MLflow's own
# retries would repeat requests such as creating a run; raydet.tune.tracking_queue retries without such duplicates.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import mlflow.store.db.utils
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import (
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException

from raydet.errors import TrackerUnavailableError, TrackingError
from raydet.metrics.names import MASK_NAMES, METRIC_NAMES, PER_CLASS, PER_CLASS_IOU, RECALL_NAMES
from raydet.redact import redact
from raydet.track.base import RunStatus, RunView, TrackedCheckpoint
from raydet.track.datasets import Dataset
from raydet.track.server import check_reachable
from raydet.track.sqlite import sqlite_path, sqlite_uri

# MLflow silently retries a failing database for 100 s; with five retries, for 3 s.
mlflow.store.db.utils.MAX_RETRY_COUNT = 5

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

IDENTITY_TAG = "raydet.identity"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: the UI draws the tree from it
NOTE_TAG = "mlflow.note.content"  # MLflow's own: Markdown, shown above the runs and above a run
CONTEXT_TAG = "mlflow.data.context"  # MLflow's own: shown beside the data set
EXTERNAL_TAG = "mlflow.model.isExternal"  # MLflow's own: it does not look for the model's files
UPLOADED_TAG = "raydet.uploaded"
KIND_TAG = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's own: training, not chats
MAX_PARAMS_PER_CALL = 100
MAX_METRICS_PER_CALL = 1000
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000
PREFIXES = {
    "time.": (
        *("epoch", "train_s", "eval_s", "images_per_s", "wall_s", "loop_s"),
        *("gpu_hours", "cpu_worker_hours", "study_gpu_hours", "study_cpu_worker_hours"),
    ),
    "recall.": RECALL_NAMES,
}
"""Prefixes of metrics, so that losses and AP come first: the UI sorts charts alphabetically. A prefix with a slash
would put its metrics into a separate section above all others.
"""

_STATUS: dict[RunStatus, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_STATUS_OF = {theirs: status for status, theirs in _STATUS.items()}


def _translating_errors(
    method: Callable[Concatenate[MLflowTracker, Parameters], Result],
) -> Callable[Concatenate[MLflowTracker, Parameters], Result]:
    """Turn errors of a method, which may be MLflow's, SQLAlchemy's or requests', into `TrackingError`."""

    @functools.wraps(method)
    def call(self: MLflowTracker, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            kind = TrackingError if _is_refusal(error) else TrackerUnavailableError
            raise kind(f"{self.uri}: {method.__name__}: {_first_line(error)}") from error

    return call


class MLflowTracker:
    """The runs of one MLflow experiment; see `Tracker` for the methods.

    Every method may be repeated after a `TrackerUnavailableError`, even if the server carried out the request and only
    its response was lost: nothing is logged twice. Other processes must not write to the same runs.

    Raises:
        TrackerUnavailableError: the server does not respond.
        TrackingError: the server refuses a request.
    """

    def __init__(self, uri: str, experiment: str, *, tags: Mapping[str, str] | None = None) -> None:
        """Connect, and create the experiment if there is none.

        Args:
            uri: `sqlite:////absolute/path.db`, `http://host:port`, or any other MLflow tracking URI.
            tags: of every run that is created.

        Raises:
            TrackingError: the server cannot be reached or refuses.
        """
        # These libraries log every database migration and every retry.
        for name, level in (("mlflow", "WARNING"), ("alembic", "WARNING"), ("urllib3", "ERROR")):
            logging.getLogger(name).setLevel(level)
        self.uri = uri
        self._tags = dict(tags or {})
        check_reachable(uri)
        database = sqlite_path(uri)
        try:
            with _locked(database):
                has_options = "?" in uri
                self._client = MlflowClient(uri if database is None or has_options else sqlite_uri(database))
                self._experiment = _experiment_id(self._client, uri, experiment, database)
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(
                f"cannot use the tracking URI {uri}: {_first_line(error)}; {_remedy(error)}"
            ) from error
        self._logged_epochs: dict[str, set[int]] = {}
        self._times_ms: dict[tuple[str, int], int] = {}
        """Time of the first attempt to log a step: MLflow ignores a repeated metric of equal time and value."""
        self._in_doubt: set[str] = set()
        """Identities of runs and checkpoints that may exist because the response to their creation was lost."""

    @_translating_errors
    def open_run(self, name: str, *, identity: str, parent: str | None = None) -> str:
        identity = identity.replace("'", "_")  # searches quote it
        for run in self._find_all(identity)[:1]:
            self._client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
        return str(self._create_run(redact(name), identity, parent).info.run_id)

    @_translating_errors
    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        known = self._client.get_run(run_id).data.params
        new = [
            Param(key, redact(_param_text(value))[:MAX_PARAM_LENGTH])
            for key, value in params.items()
            if key not in known
        ]
        for chunk in _chunks(new, MAX_PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=chunk)

    @_translating_errors
    def log_history(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if run_id not in self._logged_epochs:
            epochs = self._client.get_metric_history(run_id, _metric_name("epoch"))
            self._logged_epochs[run_id] = {metric.step for metric in epochs}
        logged = self._logged_epochs[run_id]
        new = [row for row in rows if row["epoch"] not in logged]
        by_row = [self._metrics_of(run_id, row) for row in new]
        try:
            for batch in _batches(by_row):
                self._client.log_batch(run_id, metrics=batch)
        except Exception:
            del self._logged_epochs[run_id]  # the next call asks the server which epochs were logged
            raise
        for row in new:
            logged.add(row["epoch"])
            del self._times_ms[run_id, row["epoch"]]

    @_translating_errors
    def log_summary(self, run_id: str, metrics: Mapping[str, float]) -> None:
        if not metrics:
            return
        known = self._client.get_run(run_id).data.metrics
        now = self._time_ms(run_id, 0)
        new = [
            Metric(_metric_name(key), value, now, 0)
            for key, value in metrics.items()
            if known.get(_metric_name(key)) != value
        ]
        if new:
            self._client.log_batch(run_id, metrics=new)
        del self._times_ms[run_id, 0]

    @_translating_errors
    def log_datasets(self, run_id: str, datasets: Sequence[Dataset]) -> None:
        inputs = []
        for dataset in datasets:
            entity = DatasetEntity(
                dataset.name, dataset.digest, dataset.source_type, dataset.source, dataset.schema
            )
            tags = {CONTEXT_TAG: dataset.context} | dict(dataset.tags)
            inputs.append(DatasetInput(entity, [InputTag(key, redact(value)) for key, value in tags.items()]))
        self._client.log_inputs(run_id, inputs)  # a repeated input of equal name and digest is ignored

    @_translating_errors
    def log_checkpoints(
        self, run_id: str, checkpoints: Sequence[TrackedCheckpoint], *, kind: str, validation: Dataset
    ) -> None:
        if not checkpoints:
            return
        run = self._client.get_run(run_id)
        # At the time of the epoch's metrics: those of the run itself are the same and are not logged again.
        history = self._client.get_metric_history(run_id, _metric_name("epoch"))
        times_ms = {metric.step: metric.timestamp for metric in history}
        outputs = []
        for checkpoint in checkpoints:
            model = self._model_of(run, checkpoint, kind)
            known = {(metric.key, metric.step) for metric in model.metrics or ()}
            now = times_ms.get(checkpoint.epoch, run.info.start_time)
            metrics = [
                Metric(
                    *(_metric_name(key), float(value), now, checkpoint.epoch),
                    model_id=model.model_id,
                    dataset_name=validation.name,
                    dataset_digest=validation.digest,
                )
                for key, value in sorted(checkpoint.metrics.items(), key=_logging_order)
                if math.isfinite(value) and (_metric_name(key), checkpoint.epoch) not in known
            ]
            for batch in _chunks(metrics, MAX_METRICS_PER_CALL):
                self._client.log_batch(run_id, metrics=batch)
            if checkpoint.is_uploaded and UPLOADED_TAG not in model.tags:
                self._client.log_model_artifacts(model.model_id, str(checkpoint.path), "checkpoint")
                uploaded = {UPLOADED_TAG: "checkpoint", EXTERNAL_TAG: "false"}
                self._client.set_logged_model_tags(model.model_id, uploaded)
            if model.status != LoggedModelStatus.READY:
                self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            outputs.append(LoggedModelOutput(model.model_id, step=checkpoint.epoch))
        # Read after the models were found or created: a request whose answer was lost has linked them already.
        linked = {output.model_id for output in self._client.get_run(run_id).outputs.model_outputs}
        new = [output for output in outputs if output.model_id not in linked]
        if new:
            self._client.log_outputs(run_id, new)

    @_translating_errors
    def log_text(self, run_id: str, text: str, path: str) -> None:
        self._client.log_text(run_id, redact(text), path)

    @_translating_errors
    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        # The client's log_table would append to an existing table.
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        self._client.log_text(run_id, redact(json.dumps(table)), path)
        tag = f'[{{"path": "{path}", "type": "table"}}]'
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", tag)

    @_translating_errors
    def find_run(self, identity: str) -> str | None:
        return next((str(run.info.run_id) for run in self._find_all(identity)), None)

    @_translating_errors
    def log_files(self, run_id: str, files: Sequence[Path], *, root: Path, folder: str) -> None:
        for file in files:
            directory = Path(folder) / file.parent.relative_to(root)
            self._client.log_artifact(run_id, str(file), directory.as_posix())

    @_translating_errors
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, redact(value)) for key, value in tags.items()])

    @_translating_errors
    def describe(self, run_id: str, sentences: Sequence[str]) -> None:
        escaped = (re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", redact(sentence)) for sentence in sentences)
        note = "\n".join(f"- {sentence}" for sentence in escaped)[:MAX_TAG_LENGTH]  # Markdown
        self._client.set_tag(run_id, NOTE_TAG, note)
        self._client.set_experiment_tag(self._experiment, NOTE_TAG, note)

    @_translating_errors
    def close_run(self, run_id: str, status: RunStatus) -> None:
        self._client.set_terminated(run_id, _STATUS[status])

    @_translating_errors
    def runs(self) -> list[RunView]:
        found: list[RunView] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            for run in page:
                status = _STATUS_OF.get(run.info.status)
                found.append(RunView(run.info.run_name, status, run.data.metrics, _metric_name))
            token = page.token
            if not token:
                return found

    def _create_run(self, name: str, identity: str, parent: str | None) -> Run:
        tags = self._tags | {IDENTITY_TAG: identity} | ({PARENT_TAG: parent} if parent else {})
        was_in_doubt = identity in self._in_doubt
        self._in_doubt.add(identity)
        run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        if was_in_doubt:  # a slow server may have created a run for the earlier call meanwhile
            run, *others = self._find_all(identity)
            for other in others:
                self._client.delete_run(other.info.run_id)
        self._in_doubt.discard(identity)
        return run

    def _model_of(self, run: Run, checkpoint: TrackedCheckpoint, kind: str) -> LoggedModel:
        """The logged model of a checkpoint; created if there is none. MLflow forbids some characters in its name."""

        def found() -> list[LoggedModel]:
            models = self._client.search_logged_models(
                [self._experiment],
                filter_string=f"source_run_id = '{run.info.run_id}' AND tags.`raydet.sha256` = '{checkpoint.sha256}'",
                order_by=[{"field_name": "creation_timestamp", "ascending": True}],
            )
            return list(models)

        identity = f"{run.info.run_id} {checkpoint.sha256}"
        existing = found()
        if not existing:
            was_in_doubt = identity in self._in_doubt
            self._in_doubt.add(identity)
            tags = {
                EXTERNAL_TAG: "true",
                "raydet.checkpoint": redact(str(checkpoint.path)),
                "raydet.run_dir": redact(str(checkpoint.path.parents[1])),
                "raydet.sha256": checkpoint.sha256,
            }
            model = self._client.create_logged_model(
                self._experiment,
                name=re.sub(r"""[/:.%"']""", "_", f"{run.info.run_name} {checkpoint.path.name}"),
                source_run_id=run.info.run_id,
                tags=tags,
                params={"epoch": str(checkpoint.epoch)},
                model_type=kind,
            )
            existing = found() if was_in_doubt else [model]
        model, *others = existing
        for other in others:  # a slow server created it for an earlier call
            self._client.delete_logged_model(other.model_id)
        self._in_doubt.discard(identity)
        return model

    def _find_all(self, identity: str) -> list[Run]:
        """Runs with an identity, oldest first."""
        found = self._client.search_runs(
            [self._experiment],
            filter_string=f"tags.`{IDENTITY_TAG}` = '{identity}'",
            run_view_type=ViewType.ACTIVE_ONLY,
            order_by=["attributes.start_time ASC"],
        )
        return list(found)

    def _metrics_of(self, run_id: str, row: Mapping[str, Any]) -> list[Metric]:
        """Metrics of an epoch. The epoch number comes last: where it is logged, the others are too."""
        now = self._time_ms(run_id, row["epoch"])
        return [
            Metric(_metric_name(key), float(value), now, row["epoch"])
            for key, value in sorted(row.items(), key=_logging_order)
            if isinstance(value, int | float) and math.isfinite(value)
        ]

    def _time_ms(self, run_id: str, step: int) -> int:
        return self._times_ms.setdefault((run_id, step), int(time.time() * 1000))


@contextmanager
def _locked(database: Path | None) -> Iterator[None]:
    """Lock a sqlite file between processes: MLflow creates and migrates its tables without a lock.

    Args:
        database: its directory is made; None: the database is not sqlite.
    """
    if database is None:
        yield
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = database.with_name(f"{database.name}.lock").open("w")
    except OSError as error:
        raise TrackingError(
            f"cannot write the tracker's database {database}: {error.strerror}; choose another path"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment_id(client: MlflowClient, uri: str, name: str, database: Path | None) -> str:
    """The id of the experiment, which is created if there is none; beside a sqlite file, its artifacts are too.

    Raises:
        TrackingError: the experiment was deleted. MLflow keeps its name until it is restored or removed for good.
    """
    existing = client.get_experiment_by_name(name)
    if existing is None:
        location = None
        if database is not None:  # else MLflow would use ./mlruns of the current directory
            location = (database.resolve().parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=KIND_TAG))
        except MlflowException:  # another driver has created it meanwhile
            existing = client.get_experiment_by_name(name)
            if existing is None:
                raise
    if existing.lifecycle_stage == "deleted":
        number = existing.experiment_id
        raise TrackingError(
            f'the experiment "{name}" (id {number}) was deleted in MLflow; restore it with `mlflow experiments restore '
            f"-x {number}` (MLFLOW_TRACKING_URI={uri}), remove it for good with `mlflow gc --experiment-ids {number}`, "
            "or choose another --tracking-uri"
        )
    return str(existing.experiment_id)


def _metric_name(key: str) -> str:
    for prefix in (PER_CLASS, PER_CLASS_IOU):
        if key.startswith(prefix):  # the class name may contain a slash
            key = f"per_class_{prefix[:-1]}." + key.removeprefix(prefix).replace("/", "_")
    start = next((prefix for prefix, keys in PREFIXES.items() if key in keys), "")
    return start + re.sub(r"[^\w\-. :/]", "_", key)


def _logging_order(item: tuple[str, Any]) -> int:
    """AP or mIoU first, as the compare view of the UI shows the metric that was logged first; the epoch last."""
    is_renamed = _metric_name(item[0]) != item[0]
    return (item[0] not in (*METRIC_NAMES, *MASK_NAMES)) + is_renamed + (item[0] == "epoch")


def _batches(by_row: Sequence[list[Metric]]) -> Iterator[list[Metric]]:
    """Batches of at most `MAX_METRICS_PER_CALL`; rows are kept together, as MLflow logs all of a call or nothing."""
    batch: list[Metric] = []
    for metrics in by_row:
        if len(batch) + len(metrics) > MAX_METRICS_PER_CALL:
            yield from _chunks(batch, MAX_METRICS_PER_CALL)
            batch = []
        batch += metrics
    yield from _chunks(batch, MAX_METRICS_PER_CALL)


def _is_refusal(error: Exception) -> bool:
    """Whether the server has rejected the request for good."""
    response = getattr(error, "response", None)  # errors of requests, for artifacts
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif response is not None:
        status = response.status_code
    else:
        return False
    return 400 <= status < 500 and status != 429  # too many requests


def _param_text(value: Any) -> str:
    """A parameter as text; lists in parentheses, as the UI would spread JSON over a line per number."""
    return f"({', '.join(map(_param_text, value))})" if isinstance(value, list | tuple) else str(value)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _remedy(error: Exception) -> str:
    if re.search(r"error code 40[13]\b", str(error)):
        return "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and the permissions of that user"
    if isinstance(error, MlflowException):
        return "start the server, or leave --tracking-uri out for a local sqlite file"
    return "check the URI, and the user and password in it"
