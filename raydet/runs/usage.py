"""GPU-hours and CPU worker-hours that a run has used, over all attempts, failed ones included.

The main worker writes `usage.json` when an attempt starts and when it ends. A killed attempt has no end: it counts up
to the last file that it wrote in the run directory, so at most one heartbeat interval is missing. Time before the
workers are up (waiting for nodes, starting processes) is not counted.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict

from raydet.runs.run_dir import PROGRESS, write_atomically

USAGE_FILE = "usage.json"
SIGNS_OF_LIFE = (USAGE_FILE, PROGRESS, "heartbeats/rank_0000.json")
"""Files that a running attempt keeps writing."""
GPU_HOURS, CPU_WORKER_HOURS = "GPU-hours", "CPU worker-hours"

logger = logging.getLogger("raydet")


class Attempt(TypedDict):
    """One entry of usage.json."""

    since: float
    """Unix time at which the workers came up."""
    until: float | None
    """None: it is running, or was killed."""
    workers: int
    use_gpu: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Worker time."""

    gpu_s: float = 0.0
    """Seconds of workers with a GPU; each has one."""
    cpu_worker_s: float = 0.0
    """Seconds of workers without a GPU, each with any number of CPUs."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.gpu_s + other.gpu_s, self.cpu_worker_s + other.cpu_worker_s)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.gpu_s - other.gpu_s, self.cpu_worker_s - other.cpu_worker_s)

    def __str__(self) -> str:
        """
        >>> str(Usage(gpu_s=5400)), str(Usage(cpu_worker_s=36))
        ('1.500 GPU-hours', '0.010 CPU worker-hours')
        >>> str(Usage(gpu_s=360, cpu_worker_s=72))
        '0.100 GPU-hours and 0.020 CPU worker-hours'
        """
        parts = [f"{hours:.3f} {unit}" for unit, hours in self.by_unit.items() if hours > 0]
        return " and ".join(parts) or "no hours"

    @property
    def by_unit(self) -> dict[str, float]:
        """Hours by unit, both of them."""
        return {GPU_HOURS: self.gpu_hours, CPU_WORKER_HOURS: self.cpu_worker_hours}

    @property
    def unit(self) -> str:
        """The unit for a table with a single column: GPU-hours if there are any."""
        return GPU_HOURS if self.gpu_s else CPU_WORKER_HOURS

    @property
    def gpu_hours(self) -> float:
        return self.gpu_s / 3600

    @property
    def cpu_worker_hours(self) -> float:
        return self.cpu_worker_s / 3600

    def as_json(self) -> dict[str, float]:
        """The fields, rounded to milliseconds."""
        return {"gpu_s": round(self.gpu_s, 3), "cpu_worker_s": round(self.cpu_worker_s, 3)}

    @classmethod
    def parse(cls, values: Mapping[str, float]) -> Self:
        """The inverse of `as_json`."""
        return cls(gpu_s=values["gpu_s"], cpu_worker_s=values["cpu_worker_s"])


def usage_of(run_dir: Path) -> Usage:
    """Usage of all attempts so far, a running one included."""
    total = Usage()
    for attempt in _attempts(run_dir):
        until = _last_sign_of_life(run_dir) if attempt["until"] is None else attempt["until"]
        seconds = attempt["workers"] * max(0.0, until - attempt["since"])
        total += Usage(gpu_s=seconds) if attempt["use_gpu"] else Usage(cpu_worker_s=seconds)
    return total


@contextmanager
def record_usage(
    run_dir: Path, *, since: float, workers: int, use_gpu: bool, enabled: bool = True
) -> Iterator[None]:
    """Record an attempt in `usage.json`, before the block and after it.

    Args:
        since: Unix time at which its workers came up.
        enabled: false on all ranks but the main one.
    """
    if not enabled:
        yield
        return
    attempts = _attempts(run_dir)
    for earlier in attempts:
        if earlier["until"] is None:  # it was killed; later signs of life are this attempt's
            earlier["until"] = _last_sign_of_life(run_dir)
    current = Attempt(since=since, until=None, workers=workers, use_gpu=use_gpu)
    _write(run_dir, [*attempts, current])
    try:
        yield
    finally:
        current["until"] = time.time()
        _write(run_dir, [*attempts, current])


def _attempts(run_dir: Path) -> list[Attempt]:
    try:
        return json.loads((run_dir / USAGE_FILE).read_text())
    except FileNotFoundError:
        return []


def _write(run_dir: Path, attempts: list[Attempt]) -> None:
    try:
        write_atomically(run_dir / USAGE_FILE, json.dumps(attempts) + "\n")
    except OSError as error:  # no reason to lose the run
        logger.warning("cannot write %s: %s", run_dir / USAGE_FILE, error)


def _last_sign_of_life(run_dir: Path) -> float:
    """When the newest attempt last wrote one of its files, as Unix time; 0: never."""
    times = [0.0]
    for name in SIGNS_OF_LIFE:
        with suppress(FileNotFoundError):  # a worker that ends removes its heartbeat
            times.append((run_dir / name).stat().st_mtime)
    return max(times)
