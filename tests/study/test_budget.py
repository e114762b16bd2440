"""A budget ends a study cleanly: running trials save, none starts, and a larger budget resumes the study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raydet.errors import EXIT_BUDGET_SPENT, EXIT_USAGE
from tests.study.conftest import events, names, tune
from tests.study.test_sigterm import assert_all_is_saved, steps

LONG = ("--set", "train.epochs=1000", "--set", "train.eval_every=1000", "--cpus-per-worker", "1")


def tracked_hours(storage: Path) -> dict[str, float]:
    """CPU worker-hours in MLflow by run name."""
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("gaff").experiment_id])
    return {run.info.run_name: run.data.metrics["time.cpu_worker_hours"] for run in runs}


@pytest.mark.ray
@pytest.mark.slow
def test_a_larger_budget_resumes_the_study(tmp_path: Path) -> None:
    run_dir = tmp_path / "gaff" / "controls" / "control_rgb"
    num_steps = []
    for hours in (0.002, 0.002, 0.005):
        result = tune(tmp_path, "--budget-worker-hours", str(hours), *LONG)
        assert result.returncode == EXIT_BUDGET_SPENT, result.stdout + result.stderr
        assert f"the budget of {hours} CPU worker-hours is spent" in result.stdout
        remedy = "nothing is lost, the same command with a larger budget continues"
        assert f"37 trials left; {remedy}" in result.stdout
        assert "Traceback" not in result.stdout + result.stderr
        assert_all_is_saved(run_dir)
        num_steps.append(len(steps(run_dir)))
    assert num_steps[0] == num_steps[1] < num_steps[2]
    assert names(tmp_path, "started") == {run_dir.name: 2}
    attempts = json.loads((run_dir / "usage.json").read_text())
    assert [(attempt["workers"], attempt["use_gpu"]) for attempt in attempts] == [(1, False)] * 2
    taken = sum(attempt["until"] - attempt["since"] for attempt in attempts) / 3600
    spent = [entry["usage"] for entry in events(tmp_path) if entry["event"] == "budget_exhausted"]
    assert spent[0] == spent[1]
    assert spent[2]["cpu_worker_s"] / 3600 == pytest.approx(taken, rel=1e-4)
    assert tracked_hours(tmp_path) == pytest.approx({run_dir.name: taken, "controls": taken}, rel=1e-4)


@pytest.mark.ray
@pytest.mark.slow
def test_gpu_hours_are_refused_where_there_are_no_gpus(tmp_path: Path) -> None:
    result = tune(tmp_path, "--budget-gpu-hours", "1")
    assert result.returncode == EXIT_USAGE, result.stdout + result.stderr
    assert "--budget-gpu-hours limits nothing without GPUs; use --budget-worker-hours" in result.stderr
    assert not names(tmp_path, "started")
