"""Asking the workers of a run to save and stop, and what is to become of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from raydet.errors import (
    HostMemoryError,
    PreemptedError,
    RaydetError,
    RestartRequestedError,
    StoppedEarlyError,
)
from raydet.runs.run_dir import write_atomically

STOP_FILE = "stop_requested"
"""Made in a run's directory, asks its workers to save and stop, on whatever machines they are: `order: reason`."""


class StopKind(StrEnum):
    """What is to become of a run that is asked to stop."""

    END = "end"
    """The next command goes on."""
    EARLY = "early"
    """Enough is known about it."""
    RESTART = "restart"
    """It starts again at once, elsewhere or with more workers."""
    MEMORY = "memory"
    """It starts again at once, in fresh processes."""


_ERRORS: Mapping[StopKind, type[RaydetError]] = {
    StopKind.END: PreemptedError,
    StopKind.EARLY: StoppedEarlyError,
    StopKind.RESTART: RestartRequestedError,
    StopKind.MEMORY: HostMemoryError,
}


@dataclass(frozen=True, slots=True)
class Stop:
    """An order and its reason."""

    order: StopKind
    reason: str

    def __str__(self) -> str:
        return f"{self.order}: {self.reason}"

    @classmethod
    def parse(cls, text: str) -> Stop:
        """What `str` gave; whatever else stands there is the reason of somebody who wants the run to end."""
        order, _, reason = text.strip().partition(": ")
        if order not in list(StopKind):
            return cls(StopKind.END, text.strip() or f"{STOP_FILE} was made")
        return cls(StopKind(order), reason)

    def as_error(self, message: str) -> RaydetError:
        """How the order comes out of the loop."""
        return _ERRORS[self.order](message)


def request_stop(directory: Path, order: StopKind, reason: str) -> None:
    """Have the workers of the run in `directory` save and stop, within seconds and a step.

    A new start replaces no other order.
    """
    if order == StopKind.RESTART and requested_stop(directory) is not None:
        return
    write_atomically(directory / STOP_FILE, str(Stop(order, reason)))


def requested_stop(directory: Path) -> Stop | None:
    """The order that stands, if one does."""
    try:
        text = (directory / STOP_FILE).read_text()
    except FileNotFoundError:
        return None
    return Stop.parse(text)
