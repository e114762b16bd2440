"""What the tracker is to hear waits while it is away, in order, and comes once."""

from __future__ import annotations

import threading
import time

import pytest

from raydet.errors import TrackerAwayError, TrackingError
from raydet.tune import tracking_queue as outbox
from raydet.tune.tracking_queue import Outbox


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(outbox, "LONGEST_WAIT_S", 0.02)


class Ear:
    """A tracker that can be away, or refuse."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.is_away = threading.Event()
        self.num_tries = 0

    def hear(self, word: str) -> None:
        self.num_tries += 1
        if self.is_away.is_set():
            raise TrackerAwayError(f"try {self.num_tries}")
        if word == "refused":
            raise TrackingError("no")
        self.heard.append(word)


def test_what_waits_comes_in_order_when_the_tracker_is_back() -> None:
    ear, said = Ear(), []
    box = Outbox(said.append)
    ear.is_away.set()
    for number in range(20):
        box.put(lambda number=number: ear.hear(str(number)))
    while ear.num_tries < 3:
        time.sleep(0.001)
    assert ear.heard == []
    ear.is_away.clear()
    assert box.close(patience_s=10) == 0
    assert ear.heard == [str(number) for number in range(20)]
    assert said == ["the tracker is away, what there is to say waits (try 1)", "the tracker is back"]


def test_news_take_the_place_of_what_still_waits() -> None:
    ear = Ear()
    box = Outbox(lambda _: None)
    ear.is_away.set()
    for number in range(1000):
        box.put(lambda number=number: ear.hear(f"a{number}"), replaces="a")
        box.put(lambda number=number: ear.hear(f"b{number}"), replaces="b")
    assert len(box._calls) == 2
    ear.is_away.clear()
    assert box.close(patience_s=10) == 0
    assert ear.heard == ["a999", "b999"]


def test_what_is_refused_does_not_hold_up_the_rest() -> None:
    ear, said = Ear(), []
    box = Outbox(said.append)
    for word in ("one", "refused", "refused", "two"):
        box.put(lambda word=word: ear.hear(word))
    assert box.close(patience_s=10) == 0
    assert ear.heard == ["one", "two"]
    assert said == ["tracking failed (no); nothing is lost, the same command tries again"]


def test_a_tracker_that_stays_away_ends_the_patience() -> None:
    ear = Ear()
    box = Outbox(lambda _: None)
    ear.is_away.set()
    for word in ("one", "two"):
        box.put(lambda word=word: ear.hear(word))
    assert box.close(patience_s=0.2) == 2  # returns, though the tracker never answers
