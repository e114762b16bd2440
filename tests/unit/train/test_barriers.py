"""Threads beside a busy machine, as the kernel and libgomp really have it; nothing here depends on how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

from raydet.train import barriers
from raydet.train.barriers import _libgomp, _OversizedTeam, _waited_s, yielding_busy_cores

COUNT = """
import json, time
import torch
from raydet.train.barriers import _OversizedTeam, _libgomp

torch.set_num_threads(2)
rows = torch.ones(1_000_000, dtype=torch.float64)  # enough to be cut into two parts

def voluntary():  # how often our threads went to sleep
    from pathlib import Path
    lines = [line for path in Path("/proc/self/task").glob("*/status") for line in path.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

def sleeps():
    before = voluntary()
    for _ in range(200):
        rows.add_(1)
        time.sleep(0.0002)  # longer than 100 rounds of spinning, shorter than 300,000
    return voluntary() - before

rows.add_(1)
team = _OversizedTeam(_libgomp())
spinning = sleeps()
team.start()
time.sleep(0.2)
sleeping = sleeps()
team.stop()
again = sleeps()
print(json.dumps([spinning, sleeping, again, rows.sum().item()]))
"""


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of the team, with the kernel's count of waiting under the test's control."""
    events: list[str] = []
    monkeypatch.setattr(barriers, "INTERVAL_S", 0.01)
    monkeypatch.setattr(
        _OversizedTeam, "start", lambda self: (events.append("sleep"), setattr(self, "_thread", 1))
    )
    monkeypatch.setattr(
        _OversizedTeam, "stop", lambda self: (events.append("spin"), setattr(self, "_thread", None))
    )
    for name in barriers.USERS_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return events


def wait_for(events: list[str], *expected: str) -> None:
    deadline = time.monotonic() + 60
    while events != list(expected):
        assert time.monotonic() < deadline, events
        time.sleep(0.01)


def test_threads_sleep_once_they_wait_for_cores(watched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    waits_per_s = 0.0
    monkeypatch.setattr(barriers, "_waited_s", lambda: time.monotonic() * waits_per_s)
    with yielding_busy_cores(2):
        time.sleep(0.1)
        assert watched == []
        waits_per_s = 0.9
        wait_for(watched, "sleep")
        waits_per_s = 0.1  # between the two limits nothing changes
        time.sleep(0.1)
        assert watched == ["sleep"]
        waits_per_s = 0.0
        wait_for(watched, "sleep", "spin")
    assert not [thread for thread in threading.enumerate() if thread.name == "raydet-barriers"]


@pytest.mark.parametrize(("threads", "setting"), [(1, None), (2, "GOMP_SPINCOUNT"), (2, "OMP_WAIT_POLICY")])
def test_what_the_user_has_set_stays(
    threads: int, setting: str | None, watched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting is not None:
        monkeypatch.setenv(setting, "100")
    monkeypatch.setattr(barriers, "_waited_s", lambda: time.monotonic() * 10)
    with yielding_busy_cores(threads):
        assert not [thread for thread in threading.enumerate() if thread.name == "raydet-barriers"]


def test_the_kernel_counts_how_long_threads_wait() -> None:
    before = _waited_s()
    assert before is not None
    assert before >= 0


def test_libgomp_does_as_its_manual_says() -> None:
    """A new release of PyTorch may bring another OpenMP: then this fails, and barriers.py wants another lever."""
    import torch  # noqa: F401  -- loads it

    assert _libgomp() is not None
    found = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=300
    )
    spinning, sleeping, again, total = json.loads(found.stdout)
    assert total == 602e6
    assert sleeping > spinning + 100
    assert sleeping > again + 100
