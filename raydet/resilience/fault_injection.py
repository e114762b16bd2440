"""Deaths on order, to prove that nothing is lost: for `raydet verify resume`, `raydet chaos` and the tests.

Where RAYDET_FAULTS names a directory, every worker looks there for an order whenever it enters a phase. One of those
it is meant for takes it, by renaming it, and so it is carried out once, however often the run starts again.
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
from raydet.resilience.current_phase import Phase, listen
from raydet.runs.run_dir import write_atomically

VARIABLE = "RAYDET_FAULTS"
ORDER = "order.json"
STRUCK = "struck.json"

FAULT_PHASES: tuple[Phase, ...] = (
    "load",
    "forward",
    "backward",
    "update",
    "save-write",
    "save-commit",
    "evaluate",
)
"""Where a worker can be struck."""

Target = Literal["worker", "node", "trial", "driver", "preemption"]
LAST_WAIT_S = 120.0
"""For others to kill this worker's node, or its driver."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to die as a worker enters `phase`."""

    phase: Phase
    step: int = 0
    """Not before so many steps are completed."""
    rank: int | None = None
    """None: whichever comes first."""
    target: Target = "worker"
    """The worker kills itself (SIGKILL). It waits there for whoever gave the order to kill its node, the process of its
    trial, or its driver; but it goes on while the pre-emption of its node is announced."""


@dataclass(frozen=True, slots=True)
class FaultHit:
    """How an order was met."""

    fault: Fault
    step: int
    """Steps completed."""
    rank: int
    pid: int
    run_dir: str
    time: float
    """Unix time."""


def order(directory: Path, fault: Fault) -> dict[str, str]:
    """Give an order; a strike of before is forgotten.

    Returns:
        What the workers' environment must hold.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / STRUCK).unlink(missing_ok=True)
    write_atomically(directory / ORDER, json.dumps(asdict(fault)))
    return {VARIABLE: str(directory)}


def withdraw(directory: Path) -> None:
    """Take an order back that nobody has met."""
    (directory / ORDER).unlink(missing_ok=True)


def struck(directory: Path) -> FaultHit | None:
    """How the newest order was met, if it was."""
    try:
        told = json.loads((directory / STRUCK).read_text())
    except FileNotFoundError:
        return None
    return FaultHit(**told | {"fault": Fault(**told["fault"])})


def arm(world: World, run_dir: Path) -> None:
    """Look out for orders, where somebody may give some."""
    name = os.environ.get(VARIABLE)
    if name is None:
        return
    directory = Path(name)

    def look(phase: Phase, step: int) -> None:
        fault = _order(directory)
        if fault is None or fault.phase != phase or step < fault.step or fault.rank not in (None, world.rank):
            return
        if _is_taken(directory):
            strike = FaultHit(fault, step, world.rank, os.getpid(), str(run_dir), time.time())
            write_atomically(directory / STRUCK, json.dumps(asdict(strike)))
            if fault.target == "worker":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.target != "preemption":
                time.sleep(LAST_WAIT_S)

    listen(look)


def _order(directory: Path) -> Fault | None:
    try:
        return Fault(**json.loads((directory / ORDER).read_text()))
    except FileNotFoundError:
        return None


def _is_taken(directory: Path) -> bool:
    """By this worker: of several that try, one can rename the file."""
    try:
        (directory / ORDER).rename(directory / f"taken-{os.getpid()}.json")
    except FileNotFoundError:
        return False
    return True
