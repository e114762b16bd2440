"""Data sets as inputs of MLflow runs, checkpoints as logged models, and where a run comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raydet.config import FrameSplit, NpyYoloSource, ShardsSource, Source
from raydet.recipes import recipe
from raydet.track.base import Upload
from raydet.track.datasets import datasets_of
from raydet.track.mlflow import MLflowTracker
from raydet.track.runs import begin_run, end_run, open_tracker
from tests.results import results_with
from tests.unit.track.test_mlflow import runs_of

Checkpoints = Callable[[Mapping[int, float | None]], list[Path]]

HISTORY = [
    {"epoch": epoch, "loss": 1.0, "mAP": mAP, "AP/a": mAP, "system/memory": 5.0}
    for epoch, mAP in ((1, 0.1), (2, 0.4), (3, 0.3))
]
RESULTS = results_with(HISTORY[-1], history=HISTORY)
DEMO = recipe("demo")


def with_source(source: Source) -> type(DEMO):  # type: ignore[valid-type]
    return DEMO.model_copy(update={"data": DEMO.data.model_copy(update={"source": source})})


@pytest.mark.parametrize(
    ("source", "sha256", "name", "digest"),
    [
        (ShardsSource(path="/sets/m3fd", sha256="ab" * 32), None, "m3fd", "ab" * 16),
        (ShardsSource(path="s3://bucket/deep/m3fd/"), "cd" * 32, "m3fd", "cd" * 16),
        (ShardsSource(path="/sets/m3fd"), None, "m3fd", "config-"),
        (NpyYoloSource(root="/sets/my set"), None, "my set", "config-"),
        (DEMO.data.source, None, "synthetic", "config-"),
    ],
)
def test_data_sets_of_a_config(source: Source, sha256: str | None, name: str, digest: str) -> None:
    training, validation = datasets_of(with_source(source), sha256=sha256)
    assert (training.name, validation.name) == (f"{name} (training)", f"{name} (validation)")
    assert training.digest == validation.digest
    assert training.digest.startswith(digest)
    assert len(training.digest) <= 36  # what MLflow stores
    (features,) = (json.loads(training.schema)["mlflow_tensorspec"]["features"],)
    assert json.loads(features)[0]["tensor-spec"]["shape"] == [-1, 3, 96, 128]


def test_another_split_is_other_data() -> None:
    other = DEMO.model_copy(update={"data": DEMO.data.model_copy(update={"split": FrameSplit()})})
    assert datasets_of(DEMO)[0].digest != datasets_of(other)[0].digest


@pytest.mark.parametrize(
    ("upload", "uploaded"), [("none", []), ("best", ["2"]), ("all", ["1", "2"])], ids=["none", "best", "all"]
)
def test_checkpoints_are_models_with_metrics(
    upload: Upload, uploaded: list[str], store: str, tmp_path: Path, checkpoints: Checkpoints
) -> None:
    name = f"models {upload}"
    kept = checkpoints({1: 0.1, 2: 0.4})
    for _ in range(2):  # a restarted driver
        tracker = MLflowTracker(store, name)
        run_id = begin_run(tracker, DEMO, name="exp_1.5: a/b", identity="key")
        tracker.log_history(run_id, HISTORY[:1])
        end_run(
            *(tracker, run_id, DEMO),
            run_dir=tmp_path / "run",
            checkpoints=kept,
            results=RESULTS,
            upload=upload,
        )
    client = MlflowClient(store)
    (run,) = runs_of(store, name)
    inputs = {
        tag.value: item.dataset
        for item in run.inputs.dataset_inputs
        for tag in item.tags
        if tag.key == "mlflow.data.context"
    }
    assert set(inputs) == {"training", "validation"}
    assert len(run.inputs.dataset_inputs) == 2
    models = {model.params["epoch"]: model for model in client.search_logged_models([run.info.experiment_id])}
    assert set(models) == {"1", "2"}
    assert {output.model_id for output in run.outputs.model_outputs} == {
        model.model_id for model in models.values()
    }
    best = models["2"]
    assert best.source_run_id == run.info.run_id
    assert best.model_type == "detection"
    assert best.tags["raydet.checkpoint"] == str(tmp_path / "run" / "checkpoints" / "epoch_0002")
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "epoch_0002" / "manifest.json").read_text())
    assert best.tags["raydet.sha256"] == manifest["sha256"]
    assert {(metric.key, metric.value, metric.step) for metric in best.metrics} == {
        ("mAP", 0.4, 2),
        ("per_class_AP.a", 0.4, 2),
    }
    assert {metric.dataset_digest for metric in best.metrics} == {inputs["validation"].digest}
    # Those of the run are not logged a second time.
    history = client.get_metric_history(run.info.run_id, "mAP")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.4), (3, 0.3)]
    for epoch, model in models.items():
        is_uploaded = epoch in uploaded
        assert (model.tags["mlflow.model.isExternal"] == "true") is not is_uploaded
        found = Path(model.artifact_location.removeprefix("file://")).rglob("*.safetensors")
        assert (list(found) != []) is is_uploaded


def test_a_run_without_a_checkpoint_has_data_sets(store: str, tmp_path: Path) -> None:
    tracker = MLflowTracker(store, "no models")
    experiment = with_source(ShardsSource(path="/sets/m3fd"))
    run_id = begin_run(tracker, experiment, name="exp", identity="key")
    (run,) = runs_of(store, "no models")
    assert run.inputs.dataset_inputs == []  # its hash is not known yet
    results = results_with(HISTORY[-1], data={"sha256": "ef" * 32, "content_sha256": "0" * 64})
    end_run(tracker, run_id, experiment, run_dir=tmp_path, checkpoints=[], results=results)
    (run,) = runs_of(store, "no models")
    assert {item.dataset.digest for item in run.inputs.dataset_inputs} == {"ef" * 16}


def test_where_a_run_comes_from(tmp_path: Path) -> None:
    tracker = open_tracker(None, directory=tmp_path, experiment="study", command="raydet tune")
    tracker.open_run("phase", identity="phase")
    (run,) = runs_of(f"sqlite:///{tmp_path}/mlflow.db", "study")
    assert run.data.tags["mlflow.source.name"] == "raydet tune"
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.data.tags["mlflow.user"]
    commit = run.data.tags.get("mlflow.source.git.commit")
    if (Path(__file__).parents[3] / ".git").exists():
        assert commit is not None
        assert len(commit) == 40
