"""A death on order, to prove that nothing is lost: `raydet verify resume` and the tests set RAYDET_FAULT."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from raydet.parallel.collectives import World
from raydet.train.phases import Phase, listen

VARIABLE = "RAYDET_FAULT"


@dataclass(frozen=True, slots=True)
class Fault:
    """Kill worker `rank` (SIGKILL) as it enters `phase` with `step` steps completed, or the first time after."""

    phase: Phase
    step: int
    rank: int
    marker: str
    """A file that gets the step when it happens: it happens once, however often the run starts again."""

    def as_environment(self) -> dict[str, str]:
        """What the workers' environment must hold."""
        return {VARIABLE: json.dumps(asdict(self))}


def arm(world: World) -> None:
    """Take the order, if there is one for this worker."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return
    fault = Fault(**json.loads(text))
    if fault.rank != world.rank or Path(fault.marker).exists():
        return

    def strike(phase: Phase, step: int) -> None:
        if phase == fault.phase and step >= fault.step:
            Path(fault.marker).write_text(str(step))
            os.kill(os.getpid(), signal.SIGKILL)

    listen(strike)
