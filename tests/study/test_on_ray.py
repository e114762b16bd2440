"""Studies end to end: each trial runs once on Ray, even if the driver is killed."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raydet.config import Experiment
from tests.study.conftest import environment, events, names, tune, tune_command

pytestmark = pytest.mark.ray


def mlflow_runs(storage: Path) -> dict[str, tuple[str, str | None]]:
    """Status and parent's name by run name; names must be unique."""
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("gaff").experiment_id], max_results=1000)
    by_id = {run.info.run_id: run for run in runs}
    found: dict[str, tuple[str, str | None]] = {}
    for run in runs:
        assert run.info.run_name not in found, f"{run.info.run_name} is in MLflow twice"
        parent = by_id.get(run.data.tags.get("mlflow.parentRunId"))
        found[run.info.run_name] = (run.info.status, parent.info.run_name if parent else None)
    return found


def test_files_journal_mlflow_and_a_second_command(tmp_path: Path) -> None:
    first = tune(tmp_path, "--max-trials", "2", "--workers", "2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stderr == ""
    assert "[1/37] control_rgb  mAP " in first.stdout
    assert "2 trials left after --max-trials 2; the same command continues" in first.stdout

    run_dir = tmp_path / "gaff" / "controls" / "control_rgb"
    files = {path.name for path in run_dir.iterdir()}
    assert files >= {
        "config.json",
        "model_info.json",
        "training.log",
        "metrics_per_epoch.csv",
        "metrics_per_batch.csv",
        "final_results.json",
        "checkpoints",
    }
    assert json.loads((run_dir / "model_info.json").read_text())["workers"] == 2
    experiment = Experiment.from_json((run_dir / "config.json").read_text(), where="test")
    assert experiment.model.rgb_modalities == ("rgb",)
    assert experiment.model.fusion_stages == ()
    with (tmp_path / "gaff" / "summary_all_experiments.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished"] * 2 + ["pending"] * 10

    second = tune(tmp_path, "--max-trials", "1", "--workers", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "4 trials, 2 finished already, 2 to run" in second.stdout
    started = ["control_rgb", "control_thermal", "control_event"]
    assert names(tmp_path, "started") == dict.fromkeys(started, 1)
    assert names(tmp_path, "tracked") == dict.fromkeys(started, 1)
    assert mlflow_runs(tmp_path) == {
        "controls": ("FINISHED", None),
        **dict.fromkeys(started, ("FINISHED", "controls")),
    }

    # As if the driver had been killed right after the trial ended: the files exist, but not the event.
    journal = tmp_path / "gaff" / "journal.jsonl"
    lost = [
        entry for entry in events(tmp_path) if entry.get("name") != started[2] or entry["event"] == "started"
    ]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in lost))
    third = tune(tmp_path, "--max-trials", "1", "--workers", "2")
    assert third.returncode == 0, third.stdout + third.stderr
    four = [*started, "control_baseline"]
    assert names(tmp_path, "started") == dict.fromkeys(four, 1)
    assert names(tmp_path, "finished") == dict.fromkeys(four, 1)
    assert names(tmp_path, "tracked") == dict.fromkeys(four, 1)

    changed = tune(tmp_path, "--epochs", "3", "--workers", "2", "--set", "train.epochs=3")
    assert changed.returncode == 2
    assert "base.train.epochs was 2, is 3" in changed.stderr


def wait_for(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGKILL, marks=pytest.mark.exhaustive),  # also covered by the slow test of chaos
    ],
)
@pytest.mark.slow
def test_a_killed_driver_repeats_nothing(how: signal.Signals, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        tune_command(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    wait_for(lambda: len(names(tmp_path, "started")) == 2 and names(tmp_path, "finished"), 180)
    driver.send_signal(how)
    output, error = driver.communicate(timeout=180)
    if how == signal.SIGINT:
        assert driver.returncode == 130, output + error
        assert error.strip() == "interrupted; the same command continues"
    if how == signal.SIGTERM:
        assert driver.returncode == 143, output + error
        assert error.strip() == "stopped by SIGTERM; the same command continues"
    finished = names(tmp_path, "finished")
    again = tune(tmp_path, "--max-trials", "1")
    assert again.returncode == 0, again.stdout + again.stderr
    for name in finished:
        assert names(tmp_path, "started")[name] == 1
    assert set(names(tmp_path, "finished").values()) == {1}
    assert set(names(tmp_path, "tracked")) == set(names(tmp_path, "finished"))
    tracked = {name for name, (status, _) in mlflow_runs(tmp_path).items() if status == "FINISHED"}
    assert set(names(tmp_path, "finished")) <= tracked


def test_a_failing_trial_is_named_and_sets_the_exit_code(tmp_path: Path) -> None:
    failed = tune(tmp_path, "--max-trials", "1", "--set", "optim.lr=1e30", "--set", "optim.clip_norm=null")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "FAILED, will be retried: " in failed.stdout
    assert "the same command tries again" in failed.stdout
    assert "the loss is not finite at step" in failed.stdout
    assert [entry["event"] for entry in events(tmp_path)][-1] == "failed"


@pytest.mark.exhaustive
def test_the_whole_two_phase_study(tmp_path: Path) -> None:
    whole = tune(tmp_path, "--concurrency", "2", "--set", "train.epochs=1")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "phase2_hyperparameter_tuning: 24 trials, 3 finished already, 21 to run" in whole.stdout
    assert len(names(tmp_path, "finished")) == 37  # with 4 controls, and 2 x 2 for the confirmation
    assert set(names(tmp_path, "started").values()) == {1}
    runs = mlflow_runs(tmp_path)
    assert len(runs) == 41
    again = tune(tmp_path, "--concurrency", "2", "--set", "train.epochs=1")
    assert again.returncode == 0
    assert "all trials have already run, nothing to do" in again.stdout
    assert len(names(tmp_path, "started")) == 37
    assert mlflow_runs(tmp_path) == runs
