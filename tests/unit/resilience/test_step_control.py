from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from raydet.errors import StoppedEarlyError
from raydet.parallel.collectives import World
from raydet.resilience import step_control as control
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.step_control import Control, StopRequest, Verdict, stopping_on_sigterm
from raydet.resilience.stop_signal import STOP_FILE, Stop, StopKind, request_stop, requested_stop


def control_of(run_dir: Path, fault_tolerance: FaultTolerance, stop: StopRequest | None = None) -> Control:
    return Control(World(), run_dir, fault_tolerance, stop or StopRequest())


def test_steps_between_checkpoints(tmp_path: Path) -> None:
    asked = control_of(tmp_path, FaultTolerance(checkpoint_s=None, checkpoint_steps=3))
    assert [asked.after_step(step).save for step in range(1, 8)] == [
        False,
        False,
        True,
        False,
        False,
        True,
        False,
    ]


def test_seconds_between_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(control.time, "monotonic", lambda: now)
    asked = control_of(tmp_path, FaultTolerance(checkpoint_s=60))
    assert asked.after_step(1) == Verdict()
    now = 161.0
    assert asked.after_step(2) == Verdict(save=True)
    asked.saved()
    assert asked.after_step(3) == Verdict()


def test_a_file_asks_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ASK_INTERVAL_S", 0.0)
    asked = control_of(tmp_path, FaultTolerance())
    assert asked.after_step(1) == Verdict()
    (tmp_path / STOP_FILE).touch()
    assert asked.after_step(2) == Verdict(save=True, stop=Stop(StopKind.END, f"{STOP_FILE} was made"))


def test_text_written_by_hand_is_a_reason_to_end(tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).write_text("end\n")
    assert requested_stop(tmp_path) == Stop(StopKind.END, "")
    (tmp_path / STOP_FILE).write_text("maintenance: at noon\n")
    assert requested_stop(tmp_path) == Stop(StopKind.END, "maintenance: at noon")


def test_a_restart_replaces_no_other_request(tmp_path: Path) -> None:
    request_stop(tmp_path, StopKind.RESTART, "room")
    request_stop(tmp_path, StopKind.EARLY, "far behind")
    request_stop(tmp_path, StopKind.RESTART, "room")
    assert requested_stop(tmp_path) == Stop(StopKind.EARLY, "far behind")


def test_a_request_becomes_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ASK_INTERVAL_S", 0.0)
    request_stop(tmp_path, StopKind.EARLY, "0.1: far behind")
    stop = control_of(tmp_path, FaultTolerance()).after_step(1).stop
    assert stop == Stop(StopKind.EARLY, "0.1: far behind")
    assert type(stop.as_error("x")) is StoppedEarlyError


def test_sigterm_is_a_request_while_the_block_runs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with stopping_on_sigterm(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.stop == Stop(StopKind.END, "SIGTERM")
        stop.ask(Stop(StopKind.EARLY, "another reason"))
    assert stop.stop == Stop(StopKind.END, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == before
