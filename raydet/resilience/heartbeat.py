"""Which worker stands still, and where: every rank writes down where it is, rank 0 reads along.

A worker that waits for a message from a stopped one cannot say whom it waits for. Here a thread of its own writes
phase, step, images and stack of the training thread into a small file of the run's directory, every interval.
Rank 0 watches the files of all others, rank 1 that of rank 0; they compare a file with what it said before, by their
own clock, so clocks need not agree.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydet.errors import EXIT_STALLED
from raydet.parallel.collectives import World
from raydet.resilience.current_phase import HERE, IN_WORDS
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.host_memory import GIB, host_memory, memory_of_this_process
from raydet.resilience.step_control import StopRequest
from raydet.resilience.stop_signal import Stop, StopKind
from raydet.runs.run_dir import write_atomically
from raydet.runs.terminal import last_words

STALL_REPORT = "stalled.json"
NUM_STACK_LINES = 6
NUM_NAMED_IMAGES = 8

_ORDER: list[str] = list(IN_WORDS)

logger = logging.getLogger("raydet")


@dataclass(slots=True)
class _Seen:
    """What a rank's file said, and since when, by our clock."""

    beat: int
    place: tuple[int, str, list[str]]
    beat_at: float
    place_at: float
    said: dict[str, Any]


class Heartbeat:
    """Beats while the block runs. Where a rank has stalled, names it and ends this process with exit code 5.
    Where the host's memory ends, asks the run to save and stop.

    Ending is the only way: the training thread hangs in a message that will never come.
    """

    def __init__(
        self, run_dir: Path, world: World, fault_tolerance: FaultTolerance, stop: StopRequest
    ) -> None:
        self._run_dir = run_dir
        self._directory = run_dir / "heartbeats"
        self._world = world
        self._upkeep = fault_tolerance
        self._stop_request = stop
        self._training_thread = threading.get_ident()
        self._beat = 0
        self._seen: dict[int, _Seen] = {}
        self._looked_at = time.monotonic()
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
        # Four looks per interval: a stop is named within two intervals, wherever between two beats it comes.
        looks = 0
        while not self._stop.wait(self._upkeep.heartbeat_s / 4):
            looks += 1
            try:
                if looks % 4 == 0:
                    self._write()
                self._watch_memory()
                stalled = self._stalled_rank()
            except Exception as error:  # without its beats this rank would be taken for dead
                logger.warning("heartbeat: %s", error)
                continue
            if stalled is not None:
                self._end(*stalled)

    def _watch_memory(self) -> None:
        """The kernel kills without a word; before that, the run saves and says what is the matter."""
        used, total = host_memory()
        if used < self._upkeep.host_memory * total:
            return
        mine = memory_of_this_process()
        text = (
            f"host RAM, not GPU: {used / GIB:.1f} of {total / GIB:.1f} GiB in use, {mine / GIB:.1f} by rank "
            f"{self._world.rank} (pid {os.getpid()}) and its loaders; fewer data.loader_threads or workers per node "
            "take less"
        )
        self._stop_request.ask(Stop(StopKind.MEMORY, text))

    def _write(self) -> None:
        self._beat += 1
        frame = sys._current_frames().get(self._training_thread)
        stack = traceback.format_stack(frame)[-NUM_STACK_LINES:] if frame else []
        content = {
            "rank": self._world.rank,
            "pid": os.getpid(),
            "beat": self._beat,
            "phase": HERE.phase,
            "step": HERE.step,
            "image_ids": HERE.image_ids,
            "stack": [line.strip() for line in stack],
        }
        write_atomically(self._file(self._world.rank), json.dumps(content))

    def _watched(self) -> Iterable[int]:
        rank, size = self._world.rank, self._world.world_size
        if rank == 0:
            return range(size)
        return [0] if rank == 1 else []

    def _stalled_rank(self) -> tuple[dict[str, Any], str] | None:
        """What the stalled rank said last, and why it counts as stalled."""
        now = time.monotonic()
        pause_s = now - self._looked_at
        self._looked_at = now
        if pause_s > self._upkeep.heartbeat_s / 2:  # we stood still ourselves, and they may have, too
            for seen in self._seen.values():
                seen.beat_at += pause_s
                seen.place_at += pause_s
        for rank in self._watched():
            self._look(rank, now)
        silent = [
            seen
            for seen in self._seen.values()
            if now - seen.beat_at >= 1.5 * self._upkeep.heartbeat_s and seen.said["rank"] != self._world.rank
        ]
        if silent:
            quiet = min(silent, key=lambda seen: seen.beat_at)
            return quiet.said, f"not heard of for {now - quiet.beat_at:.0f} s: stopped, swapped out or gone"
        still_s = min((now - seen.place_at for seen in self._seen.values()), default=0.0)
        if still_s >= self._upkeep.stall_s and self._world.is_main:  # it alone sees everybody
            behind = min(self._seen.values(), key=lambda seen: (seen.place[0], _ORDER.index(seen.place[1])))
            return behind.said, f"in the same place for {still_s:.0f} s"
        return None

    def _look(self, rank: int, now: float) -> None:
        try:
            said = json.loads(self._file(rank).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            self._seen.pop(rank, None)  # not up yet, or at its end
            return
        before, place = self._seen.get(rank), (said["step"], said["phase"], said["image_ids"])
        if before is None:
            self._seen[rank] = _Seen(said["beat"], place, now, now, said)
            return
        before.said = said
        if said["beat"] != before.beat:
            before.beat, before.beat_at = said["beat"], now
        if place != before.place:
            before.place, before.place_at = place, now

    def _end(self, said: dict[str, Any], why: str) -> None:
        text = describe(said, why)
        try:
            last_words(f"error: {text}")
            logger.error("%s", text)
            write_atomically(
                self._run_dir / STALL_REPORT, json.dumps({"text": text, **said}, indent=2) + "\n"
            )
        finally:
            os._exit(EXIT_STALLED)

    def _file(self, rank: int) -> Path:
        return self._directory / f"rank_{rank:04d}.json"


def describe(said: dict[str, Any], why: str) -> str:
    """One line about a stalled rank."""
    images = ", ".join(said["image_ids"][:NUM_NAMED_IMAGES])
    place = said["stack"][-1].replace("\n", " ") if said["stack"] else "unknown"
    return (
        f"rank {said['rank']} (pid {said['pid']}) is stalled, {why}; last seen after step {said['step']} in the "
        f"{IN_WORDS[said['phase']]}{f' of {images}' if images else ''}, at {place}"
    )
