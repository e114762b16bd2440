"""The stack of a cluster: MLflow's server on PostgreSQL, serving artifacts, and unreachable for 20 s."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import secrets
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from raydet.config import flatten
from raydet.track.mlflow import _metric_name
from tests.study.conftest import environment, events, names, tune_command
from tests.study.mlflow_server import MlflowServer, postgres

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("initdb", "postgres", "createdb"))),
        reason="PostgreSQL (initdb, postgres, createdb) is not installed",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg2") is None, reason="psycopg2-binary, its driver, is not installed"
    ),
]

NUM_TRIALS, DOWNTIME_S = 8, 20.0
OF_THE_WHOLE_RUN = ("time.wall_s", "time.loop_s", "time.cpu_worker_hours")
"""Metrics that are logged once, at the end of a run."""
ARTIFACTS = {
    "config.json",
    "metrics_table.json",
    "model_info.json",
    "final_results.json",
    "metrics_per_epoch.csv",
    "training.log",
    "checkpoint_manifest.json",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    password = secrets.token_urlsafe(16)
    with postgres(password) as store:
        server = MlflowServer(tmp_path, store, {"PGPASSWORD": password})
        try:
            server.start()
            yield server
        finally:
            server.kill()


def wait_for(driver: subprocess.Popen[str], storage: Path, event: str, count: int) -> None:
    """Wait until so many trials have had an event."""
    end = time.monotonic() + 600
    while len(names(storage, event)) < count:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < end
        time.sleep(0.2)


def test_nothing_is_lost_or_duplicated(server: MlflowServer, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    options = (
        "--workers",
        "2",
        "--seeds",
        "2",
        "--max-trials",
        str(NUM_TRIALS),
        "--tracking-uri",
        server.uri,
    )
    driver = subprocess.Popen(
        tune_command(storage, *options, space="twelve_trials"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    # In the middle of a trial: its epochs are logged while it runs.
    wait_for(driver, storage, "started", 3)
    time.sleep(2)
    server.kill()
    time.sleep(1)  # updates before the kill are recorded
    num_tracked, num_finished = (len(names(storage, event)) for event in ("tracked", "finished"))
    time.sleep(DOWNTIME_S)
    wait_for(driver, storage, "finished", num_finished + 1)  # trials continue without it
    assert len(names(storage, "tracked")) == num_tracked
    server.start()
    output, error = driver.communicate(timeout=1200)
    assert driver.returncode == 0, output + error
    # More than once if the machine is so busy that the server responds slowly.
    assert output.count("MLflow unreachable; updates queued") >= 1
    assert output.count("MLflow unreachable") == output.count("MLflow reachable again")

    finished = {entry["name"]: entry for entry in events(storage) if entry["event"] == "finished"}
    assert len(finished) == NUM_TRIALS
    assert names(storage, "tracked") == dict.fromkeys(finished, 1)
    client = MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("gaff").experiment_id], max_results=1000)
    assert Counter(run.info.run_name for run in runs if run.info.run_name in finished) == dict.fromkeys(
        finished, 1
    )
    assert len(runs) == NUM_TRIALS + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if run.info.run_name not in finished)
    for run in runs:
        if run.info.run_id != parent.info.run_id:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            compare(client, run, Path(run.data.tags["raydet.run_dir"]), tmp_path / run.info.run_name)


def compare(client: MlflowClient, run: Run, run_dir: Path, fetched: Path) -> None:
    """Compare a run in the tracker with the files of the run: each number is logged once."""
    assert json.loads((run_dir / "model_info.json").read_text())["workers"] == 2
    with (run_dir / "metrics_per_epoch.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    expected: dict[str, list[tuple[int, float]]] = {name: [] for name in OF_THE_WHOLE_RUN}
    for row in rows:
        for key, text in row.items():
            if text != "" and math.isfinite(float(text)):
                expected.setdefault(_metric_name(key), []).append((int(row["epoch"]), float(text)))
    assert set(run.data.metrics) == set(expected)
    for name, values in expected.items():
        history = client.get_metric_history(run.info.run_id, name)
        found = [(metric.step, metric.value) for metric in history]
        if name in OF_THE_WHOLE_RUN:
            assert [step for step, _ in found] == [0], name
        else:
            assert found == [(step, pytest.approx(value)) for step, value in values], name
    config = json.loads((run_dir / "config.json").read_text())
    assert {key for key, _ in flatten(config)} <= set(run.data.params)
    assert run.data.params["optim.lr"] == str(config["optim"]["lr"])
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == ARTIFACTS
    fetched.mkdir()
    for name in ARTIFACTS - {"metrics_table.json", "checkpoint_manifest.json", "training.log"}:
        copy = Path(client.download_artifacts(run.info.run_id, name, str(fetched)))
        assert copy.read_text() == (run_dir / name).read_text()
