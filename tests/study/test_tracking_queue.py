"""Updates are queued while the tracker is unreachable, and then made once, in order."""

from __future__ import annotations

import threading
import time

import pytest

from raydet.errors import TrackerUnavailableError, TrackingError
from raydet.tune import tracking_queue
from raydet.tune.tracking_queue import TrackingQueue


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_queue, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(tracking_queue, "LONGEST_WAIT_S", 0.02)


class FakeTracker:
    """A tracker that can be unreachable, or refuse."""

    def __init__(self) -> None:
        self.logged: list[str] = []
        self.is_unreachable = threading.Event()
        self.num_tries = 0

    def log(self, word: str) -> None:
        self.num_tries += 1
        if self.is_unreachable.is_set():
            raise TrackerUnavailableError(f"try {self.num_tries}")
        if word == "refused":
            raise TrackingError("no")
        self.logged.append(word)


def test_queued_calls_are_made_in_order_once_the_tracker_is_reachable() -> None:
    tracker, said = FakeTracker(), []
    queue = TrackingQueue(said.append)
    tracker.is_unreachable.set()
    for number in range(20):
        queue.put(lambda number=number: tracker.log(str(number)))
    while tracker.num_tries < 3:
        time.sleep(0.001)
    assert tracker.logged == []
    tracker.is_unreachable.clear()
    assert queue.close(patience_s=10) == 0
    assert tracker.logged == [str(number) for number in range(20)]
    assert said == ["MLflow unreachable; updates queued (try 1)", "MLflow reachable again"]


def test_a_call_replaces_a_queued_one_of_the_same_subject() -> None:
    tracker = FakeTracker()
    queue = TrackingQueue(lambda _: None)
    tracker.is_unreachable.set()
    for number in range(1000):
        queue.put(lambda number=number: tracker.log(f"a{number}"), replaces="a")
        queue.put(lambda number=number: tracker.log(f"b{number}"), replaces="b")
    assert len(queue._calls) == 2
    tracker.is_unreachable.clear()
    assert queue.close(patience_s=10) == 0
    assert tracker.logged == ["a999", "b999"]


def test_a_refused_call_does_not_hold_up_the_rest() -> None:
    tracker, said = FakeTracker(), []
    queue = TrackingQueue(said.append)
    for word in ("one", "refused", "refused", "two"):
        queue.put(lambda word=word: tracker.log(word))
    assert queue.close(patience_s=10) == 0
    assert tracker.logged == ["one", "two"]
    assert said == ["tracking failed (no); nothing is lost, the same command tries again"]


def test_closing_gives_up_on_an_unreachable_tracker() -> None:
    tracker = FakeTracker()
    queue = TrackingQueue(lambda _: None)
    tracker.is_unreachable.set()
    for word in ("one", "two"):
        queue.put(lambda word=word: tracker.log(word))
    assert queue.close(patience_s=0.2) == 2  # returns although the tracker never responds
