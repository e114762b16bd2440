"""Which worker has stalled, and where: every rank writes a heartbeat file, rank 0 reads them all.

A worker that waits for a message from a stopped one cannot say which one it waits for. Here a thread writes phase,
step, images and stack of the training thread into a small file in the run directory at every interval. Rank 0 watches
the files of all ranks, rank 1 that of rank 0. They compare a file with its earlier content by their own clock, so
clocks need not agree.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from raydet.errors import EXIT_STALLED
from raydet.parallel.collectives import World
from raydet.resilience.current_phase import CURRENT, PHASE_NAMES, Phase
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.host_memory import GIB, host_memory, memory_of_this_process
from raydet.resilience.step_control import StopRequest
from raydet.resilience.stop_signal import Stop, StopKind
from raydet.runs.run_dir import write_atomically
from raydet.runs.terminal import write_to_terminal

STALL_REPORT = "stalled.json"
NUM_STACK_LINES = 6
NUM_NAMED_IMAGES = 8

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class Report:
    """The contents of a heartbeat file."""

    rank: int
    pid: int
    beat: int
    """Incremented with every heartbeat."""
    phase: Phase
    step: int
    """Optimizer steps completed."""
    image_ids: Sequence[str]
    stack: Sequence[str]
    """The innermost frames of the training thread, the newest last."""

    @property
    def position(self) -> tuple[int, Phase, Sequence[str]]:
        """What changes as training makes progress."""
        return self.step, self.phase, self.image_ids


@dataclass(slots=True)
class _RankState:
    """The last heartbeat of a rank, and since when beat and position are unchanged, by our clock."""

    report: Report
    beat_at: float
    position_at: float


class Heartbeat:
    """Writes heartbeats while the block runs. If a rank stalls, names it and ends this process with exit code 5.
    If the host is about to run out of memory, asks the run to save and stop.

    Ending the process is the only way: the training thread waits for a message that will never come.
    """

    def __init__(
        self, run_dir: Path, world: World, fault_tolerance: FaultTolerance, stop: StopRequest
    ) -> None:
        self._run_dir = run_dir
        self._directory = run_dir / "heartbeats"
        self._world = world
        self._fault_tolerance = fault_tolerance
        self._stop_request = stop
        self._training_thread = threading.get_ident()
        self._beat = 0
        self._ranks: dict[int, _RankState] = {}
        self._checked_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raydet-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._directory.mkdir(exist_ok=True)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._file(self._world.rank).unlink(missing_ok=True)

    def _run(self) -> None:
        # Four checks per interval, so that a stopped rank is named within two intervals.
        checks = 0
        while not self._stop.wait(self._fault_tolerance.heartbeat_s / 4):
            checks += 1
            try:
                if checks % 4 == 0:
                    self._write()
                self._check_memory()
                stalled = self._stalled_rank()
            except Exception as error:  # without heartbeats the others would take this rank for dead
                logger.warning("heartbeat: %s", error)
                continue
            if stalled is not None:
                self._end(*stalled)

    def _check_memory(self) -> None:
        """The kernel kills without a message; before that, the run saves and says what is wrong."""
        used, total = host_memory()
        if used < self._fault_tolerance.host_memory * total:
            return
        text = (
            f"host RAM, not GPU: {used / GIB:.1f} of {total / GIB:.1f} GiB in use, "
            f"{memory_of_this_process() / GIB:.1f} by rank {self._world.rank} (pid {os.getpid()}) and its loaders; "
            "fewer data.loader_threads or workers per node take less"
        )
        self._stop_request.ask(Stop(StopKind.MEMORY, text))

    def _write(self) -> None:
        self._beat += 1
        frame = sys._current_frames().get(self._training_thread)
        stack = traceback.format_stack(frame)[-NUM_STACK_LINES:] if frame else []
        report = Report(
            rank=self._world.rank,
            pid=os.getpid(),
            beat=self._beat,
            phase=CURRENT.phase,
            step=CURRENT.step,
            image_ids=CURRENT.image_ids,
            stack=[line.strip() for line in stack],
        )
        write_atomically(self._file(self._world.rank), json.dumps(asdict(report)))

    def _stalled_rank(self) -> tuple[Report, str] | None:
        """The last report of the stalled rank, and why it counts as stalled."""
        now = time.monotonic()
        pause_s = now - self._checked_at
        self._checked_at = now
        if pause_s > self._fault_tolerance.heartbeat_s / 2:  # we were paused, and perhaps they were, too
            for state in self._ranks.values():
                state.beat_at += pause_s
                state.position_at += pause_s
        if self._world.rank <= 1:
            for rank in range(self._world.world_size) if self._world.is_main else [0]:
                self._read(rank, now)
        states = self._ranks.values()
        others = [state for state in states if state.report.rank != self._world.rank]
        oldest = min(others, key=lambda state: state.beat_at, default=None)
        if oldest is not None and now - oldest.beat_at >= 1.5 * self._fault_tolerance.heartbeat_s:
            why = f"no heartbeat for {now - oldest.beat_at:.0f} s: stopped, swapped out or gone"
            return oldest.report, why
        still_s = min((now - state.position_at for state in states), default=0.0)
        if still_s >= self._fault_tolerance.stall_s and self._world.is_main:  # only rank 0 sees all ranks
            phases = list(PHASE_NAMES)
            reports = [state.report for state in states]
            behind = min(reports, key=lambda report: (report.step, phases.index(report.phase)))
            return behind, f"no progress for {still_s:.0f} s"
        return None

    def _read(self, rank: int, now: float) -> None:
        try:
            report = Report(**json.loads(self._file(rank).read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            self._ranks.pop(rank, None)  # not started yet, or ended
            return
        state = self._ranks.setdefault(rank, _RankState(report, now, now))
        if report.beat != state.report.beat:
            state.beat_at = now
        if report.position != state.report.position:
            state.position_at = now
        state.report = report

    def _end(self, report: Report, why: str) -> None:
        images = ", ".join(report.image_ids[:NUM_NAMED_IMAGES])
        line = report.stack[-1].replace("\n", " ") if report.stack else "unknown"
        text = (
            f"rank {report.rank} (pid {report.pid}) is stalled, {why}; last seen after step {report.step} "
            f"in the {PHASE_NAMES[report.phase]}{f' of {images}' if images else ''}, at {line}"
        )
        try:
            write_to_terminal(f"error: {text}")
            logger.error("%s", text)
            content = json.dumps({"text": text, **asdict(report)}, indent=2) + "\n"
            write_atomically(self._run_dir / STALL_REPORT, content)
        finally:
            os._exit(EXIT_STALLED)

    def _file(self, rank: int) -> Path:
        return self._directory / f"rank_{rank:04d}.json"
