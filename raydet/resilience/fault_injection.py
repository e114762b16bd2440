"""Injected faults, to prove that nothing is lost: for `raydet verify resume`, `raydet chaos` and the tests.

If RAYDET_FAULTS names a directory, every worker looks there for a fault whenever it enters a phase. One of the workers
that it is meant for claims it, by renaming the file, so it happens once, however often the run restarts.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from raydet.parallel.collectives import World
from raydet.resilience.current_phase import Phase, add_listener
from raydet.runs.run_dir import write_atomically

VARIABLE = "RAYDET_FAULTS"
FAULT = "fault.json"
HIT = "hit.json"

FAULT_PHASES: tuple[Phase, ...] = (
    "load",
    "forward",
    "backward",
    "update",
    "save-write",
    "save-commit",
    "evaluate",
)
"""Phases in which a fault can be injected."""

Target = Literal["worker", "node", "trial", "driver", "preemption"]
LAST_WAIT_S = 120.0
"""How long a worker that was hit waits for its node, its trial or its driver to be killed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to be killed when a worker enters `phase`."""

    phase: Phase
    step: int = 0
    """Only after this many completed steps."""
    rank: int | None = None
    """None: whichever rank comes first."""
    target: Target = "worker"
    """`worker`: it kills itself (SIGKILL). `node`, `trial` and `driver`: it waits for the injecting process to kill
    that. `preemption`: it continues while the pre-emption of its node is announced."""


@dataclass(frozen=True, slots=True)
class FaultHit:
    """A fault that has happened."""

    fault: Fault
    step: int
    """Steps completed."""
    rank: int
    pid: int
    run_dir: str
    time: float
    """Unix time."""


def inject_fault(directory: Path, fault: Fault) -> dict[str, str]:
    """Inject a fault; the record of an earlier hit is deleted.

    Returns:
        Environment variables that the workers need.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / HIT).unlink(missing_ok=True)
    write_atomically(directory / FAULT, json.dumps(asdict(fault)))
    return {VARIABLE: str(directory)}


def withdraw_fault(directory: Path) -> None:
    """Withdraw a fault that no worker has claimed."""
    (directory / FAULT).unlink(missing_ok=True)


def fault_hit(directory: Path) -> FaultHit | None:
    """How the newest fault has happened; None: not yet."""
    try:
        hit = json.loads((directory / HIT).read_text())
    except FileNotFoundError:
        return None
    return FaultHit(**hit | {"fault": Fault(**hit["fault"])})


def watch_for_faults(world: World, run_dir: Path) -> None:
    """Watch for injected faults from now on, if RAYDET_FAULTS is set."""
    name = os.environ.get(VARIABLE)
    if name is None:
        return
    directory = Path(name)

    def check(phase: Phase, step: int) -> None:
        try:
            fault = Fault(**json.loads((directory / FAULT).read_text()))
            if fault.phase != phase or step < fault.step or fault.rank not in (None, world.rank):
                return
            # Of several workers that try, only one can rename the file.
            (directory / FAULT).rename(directory / f"claimed-{os.getpid()}.json")
        except FileNotFoundError:
            return
        hit = FaultHit(fault, step, world.rank, os.getpid(), str(run_dir), time.time())
        write_atomically(directory / HIT, json.dumps(asdict(hit)))
        if fault.target == "worker":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.target != "preemption":
            time.sleep(LAST_WAIT_S)

    add_listener(check)
