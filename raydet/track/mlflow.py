"""The MLflow tracker: the only place that imports mlflow.

Files and numbers are logged, never MLflow model flavours, and nothing is ever loaded back as code.
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

# Read by mlflow at import: no telemetry, and an unreachable server is found in seconds, not minutes. MLflow's own
# retries would repeat what must not be done twice, such as making a run; ours look first (raydet.tune.tracking_queue).
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import mlflow.store.db.utils
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from raydet.errors import TrackerAwayError, TrackingError
from raydet.redact import redact
from raydet.track.base import RunStatus, RunView
from raydet.track.server import check_reachable

# A database that refuses is asked again for 100 s, in silence; so often, for 3 s.
mlflow.store.db.utils.MAX_RETRY_COUNT = 5

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

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

TOO_MANY_REQUESTS = 429

_STATUS: dict[RunStatus, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_STATUS_OF = {theirs: ours for ours, theirs in _STATUS.items()}


def _asks(
    method: Callable[Concatenate[MLflowTracker, Parameters], Result],
) -> Callable[Concatenate[MLflowTracker, Parameters], Result]:
    """Errors of a method become ours; MLflow lets SQLAlchemy's, requests' and its own through."""

    @functools.wraps(method)
    def ask(self: MLflowTracker, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            kind = TrackingError if _is_refusal(error) else TrackerAwayError
            raise kind(f"{self.uri}: {method.__name__}: {_first_line(error)}") from error

    return ask


class MLflowTracker:
    """Runs of one MLflow experiment.

    Every method may be called again after a `TrackerAwayError`, also where the server did what it was asked and only
    its answer was lost: nothing is noted twice. Other processes must not write the same runs.

    Raises:
        TrackerAwayError: the server does not answer now.
        TrackingError: it refuses.
    """

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
        check_reachable(uri)
        try:
            with _alone_with(uri):
                self._client = MlflowClient(uri)
                self._experiment = _experiment_id(self._client, uri, experiment)
        except Exception as error:
            raise TrackingError(
                f"cannot use the tracking URI {uri}: {_first_line(error)}; {_remedy(error)}"
            ) from error
        self._logged_epochs: dict[str, set[int]] = {}
        self._times_ms: dict[tuple[str, int], int] = {}
        """When a step of a run was logged first: MLflow takes a metric of the same time and value for the same one."""
        self._in_doubt: set[str] = set()
        """Identities of runs that may have been made without our hearing of it."""

    @_asks
    def open_run(self, name: str, *, identity: str, parent: str | None = None) -> str:
        """See `Tracker`."""
        identity = identity.replace("'", "_")  # it stands between quotes in a search
        run = self._find(identity)
        if run is None:
            run = self._make_run(redact(name), identity, parent)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)

    @_asks
    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        known = self._client.get_run(run_id).data.params
        new = [
            Param(key, redact(_param_text(value))[:MAX_PARAM_LENGTH])
            for key, value in params.items()
            if key not in known
        ]
        for chunk in _chunks(new, MAX_PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=chunk)

    @_asks
    def log_history(self, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`."""
        logged = self._epochs_of(run_id)
        new = [row for row in rows if row["epoch"] not in logged]
        by_row = [self._metrics_of(run_id, row) for row in new]
        try:
            for batch in _batches(by_row):
                self._client.log_batch(run_id, metrics=batch)
        except Exception:
            del self._logged_epochs[run_id]  # the next call asks the server how far this one came
            raise
        for row in new:
            logged.add(row["epoch"])
            del self._times_ms[run_id, row["epoch"]]

    @_asks
    def log_summary(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
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

    @_asks
    def log_text(self, run_id: str, text: str, path: str) -> None:
        """See `Tracker`."""
        self._client.log_text(run_id, redact(text), path)

    @_asks
    def log_table(self, run_id: str, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        """See `Tracker`."""
        # log_table would append to a table that is there already.
        table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        self._client.log_text(run_id, redact(json.dumps(table)), path)
        tag = f'[{{"path": "{path}", "type": "table"}}]'
        self._client.set_tag(run_id, "mlflow.loggedArtifacts", tag)

    @_asks
    def find_run(self, identity: str) -> str | None:
        """See `Tracker`."""
        run = self._find(identity)
        return None if run is None else str(run.info.run_id)

    @_asks
    def log_files(self, run_id: str, files: Sequence[Path], *, root: Path, folder: str) -> None:
        """See `Tracker`."""
        for file in files:
            place = Path(folder) / file.parent.relative_to(root)
            self._client.log_artifact(run_id, str(file), place.as_posix())

    @_asks
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """See `Tracker`."""
        self._client.log_batch(run_id, tags=[RunTag(key, redact(value)) for key, value in tags.items()])

    @_asks
    def describe(self, run_id: str, sentences: Sequence[str]) -> None:
        """See `Tracker`."""
        note = "\n".join(f"- {_markdown(redact(sentence))}" for sentence in sentences)[:MAX_TAG_LENGTH]
        self._client.set_tag(run_id, NOTE_TAG, note)
        self._client.set_experiment_tag(self._experiment, NOTE_TAG, note)

    @_asks
    def close_run(self, run_id: str, status: RunStatus) -> None:
        """See `Tracker`."""
        self._client.set_terminated(run_id, _STATUS[status])

    @_asks
    def runs(self) -> list[RunView]:
        """See `Tracker`."""
        found: list[RunView] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=RUNS_PER_PAGE, page_token=token)
            found += (
                RunView(run.info.run_name, _STATUS_OF.get(run.info.status), _our_metrics(run)) for run in page
            )
            token = page.token
            if not token:
                return found

    def _make_run(self, name: str, identity: str, parent: str | None) -> Run:
        tags = {IDENTITY_TAG: identity} | ({PARENT_TAG: parent} if parent else {})
        was_in_doubt = identity in self._in_doubt
        self._in_doubt.add(identity)
        run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        if was_in_doubt:  # a server that was only slow may have made the one of the earlier call meanwhile
            run, *others = self._found(identity)
            for other in others:
                self._client.delete_run(other.info.run_id)
        self._in_doubt.discard(identity)
        return run

    def _find(self, identity: str) -> Run | None:
        found = self._found(identity)
        return found[0] if found else None

    def _found(self, identity: str) -> list[Run]:
        """Runs with an identity, oldest first."""
        return list(
            self._client.search_runs(
                [self._experiment],
                filter_string=f"tags.`{IDENTITY_TAG}` = '{identity}'",
                run_view_type=ViewType.ACTIVE_ONLY,
                order_by=["attributes.start_time ASC"],
            )
        )

    def _metrics_of(self, run_id: str, row: Mapping[str, Any]) -> list[Metric]:
        """The numbers of an epoch, the epoch itself last: where it stands, all of them do."""
        now = self._time_ms(run_id, row["epoch"])
        return [
            Metric(_metric_name(key), float(value), now, row["epoch"])
            for key, value in sorted(row.items(), key=_by_interest)
            if isinstance(value, int | float) and math.isfinite(value)
        ]

    def _time_ms(self, run_id: str, step: int) -> int:
        return self._times_ms.setdefault((run_id, step), int(time.time() * 1000))

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
    is_ours = _metric_name(item[0]) != item[0]
    return (not item[0].startswith("mAP")) + is_ours + (item[0] == "epoch")


def _batches(by_row: Sequence[list[Metric]]) -> Iterator[list[Metric]]:
    """As many metrics as a call takes; MLflow notes all of a call or none, so the rows stay whole where they can."""
    batch: list[Metric] = []
    for metrics in by_row:
        if len(batch) + len(metrics) > MAX_METRICS_PER_CALL:
            yield from _chunks(batch, MAX_METRICS_PER_CALL)
            batch = []
        batch += metrics
    yield from _chunks(batch, MAX_METRICS_PER_CALL)


def _is_refusal(error: Exception) -> bool:
    """Whether the server has understood the request and will not do it, now or later."""
    response = getattr(error, "response", None)  # of requests' errors, for artifacts
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif response is not None:
        status = response.status_code
    else:
        return False
    return 400 <= status < 500 and status != TOO_MANY_REQUESTS


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


def _remedy(error: Exception) -> str:
    if re.search(r"error code 40[13]\b", str(error)):
        return "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and what that user may do"
    if isinstance(error, MlflowException):
        return "start the server, or leave --tracking-uri out for a local sqlite file"
    return "check the URI, and the user and password in it"
