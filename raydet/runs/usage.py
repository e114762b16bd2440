"""What a run has taken of the cluster: every attempt, those too that came to nothing.

The main worker writes `usage.json` when an attempt begins and when it ends. One that was killed wrote no end: it counts
up to the last sign of life that it left in the run's directory, so at most a heartbeat is missing. What passes before
the workers are up (waiting for nodes, starting processes) is not counted: it is not theirs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from raydet.runs.run_dir import PROGRESS, write_atomically

LEDGER = "usage.json"
SIGNS_OF_LIFE = (LEDGER, PROGRESS, "heartbeats/rank_0000.json")
"""Files that a running attempt writes again and again."""
GPU_HOURS, CPU_WORKER_HOURS = "GPU-hours", "CPU worker-hours"

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class Usage:
    """Workers and how long they were there."""

    gpu_s: float = 0.0
    """Seconds of GPUs; a worker has one, or none."""
    cpu_worker_s: float = 0.0
    """Seconds of workers without a GPU."""

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
        said = [f"{hours:.3f} {unit}" for unit, hours in self.by_unit.items() if hours > 0]
        return " and ".join(said) or "no hours"

    @property
    def by_unit(self) -> dict[str, float]:
        """Hours of either kind."""
        return {GPU_HOURS: self.gpu_hours, CPU_WORKER_HOURS: self.cpu_worker_hours}

    @property
    def unit(self) -> str:
        """In which a table with room for one column gives it: of GPUs, where there were any."""
        return GPU_HOURS if self.gpu_s else CPU_WORKER_HOURS

    @property
    def gpu_hours(self) -> float:
        """A worker with its GPU for an hour is one."""
        return self.gpu_s / 3600

    @property
    def cpu_worker_hours(self) -> float:
        """A worker without a GPU for an hour is one, however many CPUs it has."""
        return self.cpu_worker_s / 3600

    def as_json(self) -> dict[str, float]:
        """What `parse` reads."""
        return {"gpu_s": round(self.gpu_s, 3), "cpu_worker_s": round(self.cpu_worker_s, 3)}

    @classmethod
    def parse(cls, values: Mapping[str, float]) -> Self:
        """What `as_json` gave."""
        return cls(gpu_s=values["gpu_s"], cpu_worker_s=values["cpu_worker_s"])


def usage_of(run_dir: Path) -> Usage:
    """Of all attempts so far, the one that is under way included."""
    attempts = _attempts(run_dir)
    total = Usage()
    for attempt in attempts:
        until = _last_sign(run_dir) if attempt["until"] is None else attempt["until"]
        seconds = attempt["workers"] * max(0.0, until - attempt["since"])
        total += Usage(gpu_s=seconds) if attempt["use_gpu"] else Usage(cpu_worker_s=seconds)
    return total


@contextmanager
def noting_usage(
    run_dir: Path, *, since: float, workers: int, use_gpu: bool, enabled: bool = True
) -> Iterator[None]:
    """Write an attempt down, before the block and after it.

    Args:
        since: when its workers came up, as Unix time.
        enabled: false on all ranks but the main one.
    """
    if not enabled:
        yield
        return
    attempts = _attempts(run_dir)
    for cut in attempts:  # the last one, if it was killed; from here on the signs of life are ours
        cut["until"] = _last_sign(run_dir) if cut["until"] is None else cut["until"]
    mine: dict[str, Any] = {"since": since, "until": None, "workers": workers, "use_gpu": use_gpu}
    _write(run_dir, [*attempts, mine])
    try:
        yield
    finally:
        mine["until"] = time.time()
        _write(run_dir, [*attempts, mine])


def _attempts(run_dir: Path) -> list[dict[str, Any]]:
    try:
        attempts: list[dict[str, Any]] = json.loads((run_dir / LEDGER).read_text())
    except FileNotFoundError:
        return []
    return attempts


def _write(run_dir: Path, attempts: list[dict[str, Any]]) -> None:
    try:
        write_atomically(run_dir / LEDGER, json.dumps(attempts) + "\n")
    except OSError as error:  # no reason to lose the run
        logger.warning("cannot write %s: %s", run_dir / LEDGER, error)


def _last_sign(run_dir: Path) -> float:
    """When the newest attempt was seen last, as Unix time."""
    return max((_mtime(run_dir / name) for name in SIGNS_OF_LIFE), default=0.0)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
