"""Requests are repeated after a lost response without logging anything twice."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from raydet.errors import TrackerUnavailableError, TrackingError
from raydet.recipes import recipe
from raydet.track import mlflow as tracking
from raydet.track.mlflow import MLflowTracker
from raydet.track.runs import begin_run, end_run
from tests.results import results_with
from tests.unit.track.test_mlflow import FINAL, runs_of

WRITES = ("create_run", "update_run", "log_batch", "log_text", "set_tag", "set_terminated")


class LossyClient:
    """The real client; the response to about half of the writes is lost, at random."""

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
            if self._random.random() < 0.5:
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


def test_nothing_is_logged_twice(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MAX_METRICS_PER_CALL", 5)  # a history takes several calls
    tracker = MLflowTracker(store, "lost")
    lossy = LossyClient(tracker._client)
    tracker._client = lossy  # type: ignore[assignment]
    history = [{"epoch": epoch, "mAP": epoch / 9, "loss": 1.0, "AR_1": 0.5} for epoch in (1, 2, 3)]
    results = results_with(FINAL, history=history, wall_s=9.0)
    run_id = until_it_succeeds(lambda: begin_run(tracker, recipe("demo"), name="exp", identity="key"))
    until_it_succeeds(lambda: tracker.log_history(run_id, history[:2]))
    until_it_succeeds(lambda: end_run(tracker, run_id, run_dir=tmp_path, checkpoint=None, results=results))
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


def test_a_refusal_differs_from_an_unreachable_server(store: str) -> None:
    tracker = MLflowTracker(store, "refusal")
    with pytest.raises(TrackingError) as caught:
        tracker.close_run("0" * 32, "finished")
    assert not isinstance(caught.value, TrackerUnavailableError)
    assert "close_run" in str(caught.value)
    assert "\n" not in str(caught.value)
