"""Storage whose path has characters that mean something in a URI: everything lies where the path says."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from raydet.track.runs import SQLITE
from raydet.track.sqlite import sqlite_uri
from tests.study.conftest import tune


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["a b#c", "50%20?x=1", "Übung"])
def test_a_study_lies_where_its_path_says(name: str, tmp_path: Path) -> None:
    storage = tmp_path / name
    done = tune(storage, "--max-trials", "1", "--cpus-per-worker", "1", "--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    client = MlflowClient(sqlite_uri(storage / SQLITE))
    experiment = client.get_experiment_by_name("gaff").experiment_id
    models = client.search_logged_models([experiment])
    assert sorted(model.params["epoch"] for model in models) == ["1", "2"]
    assert all(Path(model.tags["raydet.checkpoint"]).exists() for model in models)
    (run,) = client.search_runs([experiment], filter_string="attributes.run_name = 'control_rgb'")
    run_dir = Path(run.data.tags["raydet.run_dir"])
    assert run_dir.is_relative_to(storage)
    assert (run_dir / "checkpoints").exists()
    assert Path(run.data.tags["raydet.checkpoint"]).exists()
    logged = {path.name for path in (storage / "mlartifacts" / run.info.run_id / "artifacts").iterdir()}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == logged
    assert "config.json" in logged
