"""Threads that wait for one another spin while the machine is quiet, and sleep while it is busy.

At the end of each parallel operation PyTorch's threads (GNU OpenMP) wait for the last of them. They spin for some
milliseconds before they sleep, since waking up takes longer than most operations: with small models, sleeping at once
costs half of the speed. Where another process needs a core, the same spinning is a disaster: the thread that all wait
for has no core, while those that spin hold theirs. Two threads beside one busy process were 10 to 50 times slower.

libgomp can do both, and its manual says when: with more OpenMP threads than the process has cores, threads sleep after
100 rounds. So when the kernel says that our threads wait for cores, a thread is started whose OpenMP team is larger
than the machine and does nothing; when they do not wait any more, it ends. Numbers are not touched: how work is cut
into parts depends on the number of threads at work, which stays.

GNU libgomp manual, "GOMP_SPINCOUNT"; Linux Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat".
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from raydet.cpu import num_cores

INTERVAL_S = 0.25
BUSY = 0.2
"""Seconds that all threads together have waited for a core, per second: from here on, cores are taken by others. Two
threads on two cores measured below 0.06 when nothing else ran, 0.9 beside one busy process, and 0.6 asleep there."""
NUM_BUSY_LOOKS = 2
"""In a row, before threads sleep; writing a small checkpoint causes one."""
QUIET = 0.05
NUM_QUIET_LOOKS = 4
"""In a row, before threads spin again."""
MOST_CORES = 64
"""The team has a thread per core, and containers limit the number of threads."""
USERS_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Where the user has said how threads shall wait, they do."""

logger = logging.getLogger("raydet")


@contextmanager
def yielding_busy_cores(num_threads: int, device: torch.device) -> Iterator[None]:
    """While the block runs, threads that wait give up their cores when others want them.

    Does nothing, and says why in the log, with a single thread, on a GPU, where the environment says how threads wait,
    on very many cores, and without Linux and libgomp.

    Args:
        num_threads: that PyTorch's operations run on.
        device: where they mostly run.
    """
    library, cores = _libgomp(), num_cores()
    why_not = _why_not(num_threads, device, library)
    if library is None or why_not is not None:
        logger.info(
            "using %d CPU threads of %d cores; how they wait is left alone: %s", num_threads, cores, why_not
        )
        yield
        return
    logger.info(
        "using %d CPU threads of %d cores; they spin while they wait, and sleep while others want their cores",
        num_threads,
        cores,
    )
    monitor = _Monitor(library)
    monitor.start()
    try:
        yield
    finally:
        monitor.stop()


def _why_not(num_threads: int, device: torch.device, library: ctypes.CDLL | None) -> str | None:
    settings = [f"{name}={os.environ[name]}" for name in USERS_SETTINGS if name in os.environ]
    if settings:
        return ", ".join(settings)
    if num_threads == 1:
        return "there is one"
    if device.type != "cpu":
        return "the GPU does the work"
    if num_cores() > MOST_CORES:
        return f"more than {MOST_CORES} cores"
    if library is None:
        return "PyTorch has no libgomp here"
    if _waited_s() is None:
        return "the kernel does not count how long threads wait for cores"
    return None


class _Monitor(threading.Thread):
    """Looks how long our threads have waited for cores, and has them sleep or spin."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(name="raydet-barriers", daemon=True)
        self._team = _OversizedTeam(library)
        self._stop_event = threading.Event()
        self._asleep_s = 0.0

    def stop(self) -> None:
        """End, as quickly as the thread can be woken."""
        self._stop_event.set()
        self.join()
        if self._asleep_s:
            logger.info("waiting threads slept for %.0f s, while others wanted their cores", self._asleep_s)

    def run(self) -> None:
        num_busy, num_quiet, at, waited = 0, 0, time.monotonic(), _waited_s() or 0.0
        while not self._stop_event.wait(INTERVAL_S):
            before, was = at, waited
            at, waited = time.monotonic(), _waited_s() or 0.0
            if waited < was:  # a thread has ended and has taken its count with it
                continue
            share = (waited - was) / (at - before)
            self._asleep_s += self._team.is_running * (at - before)
            num_busy = num_busy + 1 if share > BUSY else 0
            num_quiet = num_quiet + 1 if share < QUIET else 0
            if num_busy >= NUM_BUSY_LOOKS and not self._team.is_running:
                self._team.start()
            elif num_quiet >= NUM_QUIET_LOOKS and self._team.is_running:
                self._team.stop()
        self._team.stop()


class _OversizedTeam:
    """OpenMP threads beyond the number of cores, which do nothing but be there."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        """From here on, threads that wait sleep."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._hold, name="raydet-openmp-team", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From here on, threads that wait spin; does nothing where there is no team."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    def _hold(self) -> None:
        # What a compiler makes of `#pragma omp parallel num_threads(...)` around a function that does nothing: any that
        # only returns a number will do. The team lives as long as the thread that started it.
        cores = len(os.sched_getaffinity(0))
        self._library.GOMP_parallel(self._library.omp_get_thread_num, None, cores + 1, 0)
        self._stopping.wait()


def _libgomp() -> ctypes.CDLL | None:
    """PyTorch's own, which is loaded; other packages may bring theirs. None: there is none."""
    try:
        lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
        names = [line[5] for line in lines if len(line) == 6 and Path(line[5]).name.startswith("libgomp")]
        home = str(Path(torch.__file__).resolve().parent)
        return next((ctypes.CDLL(name) for name in names if name.startswith(home)), None)
    except OSError:  # only Linux has that file
        return None


def _waited_s() -> float | None:
    """Seconds that the threads of this process were ready but had no core, since each began; None: not known."""
    total_ns, ran_ns = 0, 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            ran, waited, _ = map(int, path.read_text().split())
        except (OSError, ValueError):  # the thread has just ended
            continue
        total_ns, ran_ns = total_ns + waited, ran_ns + ran
    return total_ns / 1e9 if ran_ns else None  # a kernel that does not count shows zeros
