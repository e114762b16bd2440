"""The MLflow tracker on a real sqlite store: one run per identity, even if calls are repeated."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from raydet.errors import TrackingError
from raydet.recipes import recipe
from raydet.track.base import NullTracker
from raydet.track.mlflow import MLflowTracker
from raydet.track.runs import begin_run, end_run, open_tracker, runs_by_name
from tests.results import results_with

HISTORY: list[dict[str, float | None]] = [
    {"epoch": 1, "loss": 2.0, "mAP": None},
    {"epoch": 2, "loss": 1.0, "mAP": 0.5, "AR_1": 0.4, "AP/a class, odd": 0.5, "IoU/a/../b": 0.3},
]
FINAL = {"epoch": 2, "loss": 1.0, "mAP": 0.5, "AR_1": 0.4, "AP/a class, odd": 0.5, "IoU/a/../b": 0.3}
RESULTS = results_with(FINAL, history=HISTORY, wall_s=9.0, loop_s=6.0)


def runs_of(store: str, experiment: str) -> list[Run]:
    client = MlflowClient(store)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_a_restarted_driver_continues_the_same_run(store: str, tmp_path: Path) -> None:
    experiment = recipe("demo")
    for _ in range(2):
        tracker = MLflowTracker(store, "study")
        parent = tracker.open_run("phase1", identity="phase1")
        run_id = begin_run(tracker, experiment, name="exp_001", identity="key", parent=parent)
        tracker.log_history(run_id, HISTORY[:1])
        end_run(tracker, run_id, recipe("demo"), run_dir=tmp_path, checkpoints=[], results=RESULTS)
    runs = runs_of(store, "study")
    assert sorted(run.info.run_name for run in runs) == ["exp_001", "phase1"]
    (child,) = (run for run in runs if run.info.run_name == "exp_001")
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.info.status == "FINISHED"
    assert child.data.params["optim.lr"] == str(experiment.optim.lr)
    assert child.data.params["model.backbone.variant"] == "nano"
    assert child.data.params["data.simulated"] == "nothing"
    history = MlflowClient(store).get_metric_history(child.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]
    assert child.data.metrics["per_class_AP.a class_ odd"] == 0.5
    assert child.data.metrics["per_class_IoU.a_.._b"] == 0.3
    assert child.data.metrics["time.wall_s"] == 9.0
    artifacts = {file.path for file in MlflowClient(store).list_artifacts(child.info.run_id)}
    assert artifacts == {"config.json", "metrics_table.json"}


def test_artifacts_are_next_to_the_database(store: str) -> None:
    MLflowTracker(store, "places")
    location = MlflowClient(store).get_experiment_by_name("places").artifact_location
    assert location == (Path(store.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


def test_a_server_that_closes_the_connection_is_tried_once() -> None:
    """MLflow itself would retry for minutes."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_connections() -> None:
            with contextlib.suppress(OSError):  # until the listener is closed
                while True:
                    connection, address = listener.accept()
                    connections.append(address)
                    connection.close()

        threading.Thread(target=close_connections, daemon=True).start()
        uri = f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TrackingError, match="cannot use the tracking URI"):
            open_tracker(uri, directory=Path(), experiment="study")
        listener.shutdown(socket.SHUT_RDWR)  # which ends the thread
    assert len(connections) == 1


def test_an_unreachable_server_is_reported_in_one_line() -> None:
    with socket.socket() as listener:  # bound but not listening, so no other program takes the port
        listener.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TrackingError) as caught:
            open_tracker(uri, directory=Path(), experiment="study")
    assert "cannot use the tracking URI http://***@127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_uri_none_disables_tracking() -> None:
    tracker = open_tracker("none", directory=Path(), experiment="study")
    assert isinstance(tracker, NullTracker)
    assert tracker.open_run("a", identity="a") == ""


def test_reading_runs_creates_no_tracker(tmp_path: Path) -> None:
    assert runs_by_name(None, directory=tmp_path, experiment="gaff") is None
    assert list(tmp_path.iterdir()) == []


def test_parameters_metrics_and_descriptions_for_the_ui(store: str, tmp_path: Path) -> None:
    tracker = MLflowTracker(store, "shown")
    run_id = begin_run(tracker, recipe("demo"), name="exp_001", identity="key", labels={"arm": "s1"})
    end_run(tracker, run_id, recipe("demo"), run_dir=tmp_path, checkpoints=[], results=RESULTS)
    tracker.describe(run_id, ["gaff_shared *beats* <b>it</b>.", "No more."])
    (run,) = runs_of(store, "shown")
    assert run.data.params["arm"] == "s1"
    assert run.data.params["data.canvas_hw"] == "(96, 128)"  # JSON would take a line per number in the UI
    note = run.data.tags["mlflow.note.content"]
    assert note == "- gaff\\_shared \\*beats\\* \\<b\\>it\\</b\\>.\n- No more."
    experiment = MlflowClient(store).get_experiment_by_name("shown")
    assert experiment.tags["mlflow.note.content"] == note
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    (view,) = tracker.runs()
    assert view.metric("epoch") == 2  # in the UI `time.epoch`
    assert {name: view.metric(name) for name in RESULTS.final.metrics} == RESULTS.final.metrics


@pytest.mark.slow
def test_processes_may_create_the_database_at_once(tmp_path: Path) -> None:
    code = "import sys; from raydet.track.mlflow import MLflowTracker; MLflowTracker(sys.argv[1], 'study')"
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'mlflow.db'}"]
    starts = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(start.communicate()[1], start.returncode) for start in starts] == [("", 0)] * 3
