"""Requests are repeated after a lost response without logging anything twice."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from raydet.errors import TrackerUnavailableError, TrackingError
from raydet.recipes import recipe
from raydet.track import mlflow as tracking
from raydet.track.base import TrackedCheckpoint
from raydet.track.datasets import datasets_of
from raydet.track.mlflow import MLflowTracker
from raydet.track.runs import begin_run, end_run
from tests.results import results_with
from tests.unit.track.test_mlflow import FINAL, runs_of

WRITES = ("create_run", "update_run", "log_batch", "log_text", "log_inputs", "set_tag", "set_terminated")
WRITES += ("create_logged_model", "finalize_logged_model", "log_outputs")
WRITES += ("log_model_artifacts", "set_logged_model_tags")


class LossyClient:
    """The real client; the response to about a third of the writes is lost, at random."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._random = random.Random(0)
        self.num_lost = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in WRITES:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            if self._random.random() < 0.7:
                return answer
            self.num_lost += 1
            raise ConnectionResetError("the connection was lost")

        return call


def until_it_succeeds(call: Any) -> Any:
    for _ in range(100):
        try:
            return call()
        except TrackerUnavailableError:
            continue
    raise AssertionError("no call succeeded")


def test_nothing_is_logged_twice(
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoints: Callable[[Mapping[int, float | None]], list[Path]],
) -> None:
    monkeypatch.setattr(tracking, "MAX_METRICS_PER_CALL", 5)  # a history takes several calls
    tracker = MLflowTracker(store, "lost")
    lossy = LossyClient(tracker._client)
    tracker._client = lossy  # type: ignore[assignment]
    history = [{"epoch": epoch, "mAP": epoch / 9, "loss": 1.0, "AR_1": 0.5} for epoch in (1, 2, 3)]
    results = results_with(FINAL, history=history, wall_s=9.0)
    run_id = until_it_succeeds(lambda: begin_run(tracker, recipe("demo"), name="exp", identity="key"))
    until_it_succeeds(lambda: tracker.log_history(run_id, history[:2]))
    kept = checkpoints({2: 0.2, 3: 0.3})

    def end() -> None:
        end_run(
            *(tracker, run_id, recipe("demo")),
            run_dir=tmp_path,
            checkpoints=kept,
            results=results,
            upload="best",
        )

    until_it_succeeds(end)
    assert lossy.num_lost > 5
    (run,) = runs_of(store, "lost")
    assert run.info.status == "FINISHED"
    for name, steps in {
        "mAP": [1, 2, 3],
        "time.epoch": [1, 2, 3],
        "recall.AR_1": [1, 2, 3],
        "time.wall_s": [0],
    }.items():
        assert [
            metric.step for metric in MlflowClient(store).get_metric_history(run.info.run_id, name)
        ] == steps
    assert len(run.inputs.dataset_inputs) == 2
    client = MlflowClient(store)
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted(model.params["epoch"] for model in models) == ["2", "3"]
    assert {output.model_id for output in run.outputs.model_outputs} == {model.model_id for model in models}
    for model in models:
        assert sorted(metric.key for metric in model.metrics) == ["mAP", "recall.AR_1"]
        assert str(model.status) == "READY"


def test_a_run_that_a_slow_server_created_late(store: str) -> None:
    """The first request takes effect between the second search and the second request."""
    tracker = MLflowTracker(store, "slow")
    real = tracker._client

    class SlowClient:
        late: dict[str, Any] | None = None

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def create_run(self, experiment: str, **kwargs: Any) -> Run:
            if self.late is None:
                self.late = kwargs
                raise TimeoutError("no answer for 10 s")
            first = real.create_run(experiment, **self.late)
            real.create_run(experiment, **kwargs)
            return first

    tracker._client = SlowClient()  # type: ignore[assignment]
    with pytest.raises(TrackerUnavailableError):
        tracker.open_run("exp", identity="key")
    run_id = tracker.open_run("exp", identity="key")
    (run,) = runs_of(store, "slow")
    assert run.info.run_id == run_id == tracker.open_run("exp", identity="key")


def test_a_checkpoint_that_a_slow_server_created_late(
    store: str, checkpoints: Callable[[Mapping[int, float | None]], list[Path]]
) -> None:
    tracker = MLflowTracker(store, "slow models")
    real = tracker._client

    class SlowClient:
        late: dict[str, Any] | None = None

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def create_logged_model(self, experiment: str, **kwargs: Any) -> LoggedModel:
            if self.late is None:
                self.late = kwargs
                raise TimeoutError("no answer for 10 s")
            real.create_logged_model(experiment, **self.late)
            return real.create_logged_model(experiment, **kwargs)

    tracker._client = SlowClient()  # type: ignore[assignment]
    run_id = tracker.open_run("exp", identity="key")
    (path,) = checkpoints({1: 0.5})
    checkpoint = TrackedCheckpoint(path, 1, "a" * 64, {"mAP": 0.5}, is_uploaded=False)
    validation = datasets_of(recipe("demo"))[1]
    for _ in range(2):
        with contextlib.suppress(TrackerUnavailableError):
            tracker.log_checkpoints(run_id, [checkpoint], kind="detection", validation=validation)
    (run,) = runs_of(store, "slow models")
    (model,) = real.search_logged_models([run.info.experiment_id])
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def test_a_refusal_differs_from_an_unreachable_server(store: str) -> None:
    tracker = MLflowTracker(store, "refusal")
    with pytest.raises(TrackingError) as caught:
        tracker.close_run("0" * 32, "finished")
    assert not isinstance(caught.value, TrackerUnavailableError)
    assert "close_run" in str(caught.value)
    assert "\n" not in str(caught.value)
