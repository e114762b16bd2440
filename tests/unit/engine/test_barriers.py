"""Threads beside a busy machine, as the kernel and libgomp really have it; nothing here depends on how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from raydet.cpu import num_cores
from raydet.engine import barriers
from raydet.engine.barriers import _libgomp, _OversizedTeam, _waited_s, yielding_busy_cores

CPU = torch.device("cpu")
needs_linux = pytest.mark.skipif(
    sys.platform != "linux" or num_cores() < 2, reason="needs Linux and two cores"
)

COUNT = """
import json, os, time
from pathlib import Path

import torch

from raydet.engine.barriers import _OversizedTeam, _libgomp

torch.set_num_threads(2)
rows = torch.ones(1_000_000, dtype=torch.float64)  # enough to be cut into two parts

def went_to_sleep():  # how often threads other than this one did
    others = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    lines = [line for task in others for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

def sleeps():
    before = went_to_sleep()
    for _ in range(200):
        rows.add_(1)
        time.sleep(0.0005)  # longer than 100 rounds
    return went_to_sleep() - before

rows.add_(1)
team = _OversizedTeam(_libgomp())
spinning = sleeps()
team.start()
time.sleep(0.2)
sleeping = sleeps()
print(json.dumps([spinning, sleeping, rows.sum().item()]))
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
    with yielding_busy_cores(2, CPU):
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


@pytest.mark.parametrize(
    ("threads", "device", "setting", "reason"),
    [
        (1, CPU, None, "there is one"),
        (2, torch.device("cuda"), None, "the GPU does the work"),
        (2, CPU, "GOMP_SPINCOUNT", "GOMP_SPINCOUNT=100"),
        (2, CPU, "OMP_WAIT_POLICY", "OMP_WAIT_POLICY=100"),
    ],
)
def test_where_nothing_is_changed_the_log_says_why(
    threads: int,
    device: torch.device,
    setting: str | None,
    reason: str,
    watched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "raydet")
    if setting is not None:
        monkeypatch.setenv(setting, "100")
    monkeypatch.setattr(barriers, "_waited_s", lambda: time.monotonic() * 10)
    with yielding_busy_cores(threads, device):
        assert not [thread for thread in threading.enumerate() if thread.name == "raydet-barriers"]
    assert f"how they wait is left alone: {reason}" in caplog.text


@needs_linux
def test_the_kernel_counts_how_long_threads_wait() -> None:
    before = _waited_s()
    assert before is not None
    assert before >= 0


@needs_linux
def test_libgomp_does_as_its_manual_says() -> None:
    """A new release of PyTorch may bring another OpenMP: then this fails, and barriers.py needs another lever."""
    assert _libgomp() is not None
    environment = os.environ | {
        "GOMP_SPINCOUNT": "infinity"
    }  # what spins never sleeps, however busy the machine is
    found = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    spinning, sleeping, total = json.loads(found.stdout)
    assert total == 402e6
    assert spinning == 0
    assert sleeping > 50
