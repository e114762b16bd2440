"""Stop requests: a file in the run directory asks the workers to save and stop, and says what happens to the run."""

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
"""File in a run directory that asks its workers, on any machine, to save and stop: `kind: reason`."""


class StopKind(StrEnum):
    """What happens to a run after it has stopped."""

    END = "end"
    """The next command resumes it."""
    EARLY = "early"
    """Enough is known about it: it is never resumed."""
    RESTART = "restart"
    """It restarts at once, on other nodes or with more workers."""
    MEMORY = "memory"
    """It restarts at once, in new processes."""


_ERRORS: Mapping[StopKind, type[RaydetError]] = {
    StopKind.END: PreemptedError,
    StopKind.EARLY: StoppedEarlyError,
    StopKind.RESTART: RestartRequestedError,
    StopKind.MEMORY: HostMemoryError,
}


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop request and its reason."""

    kind: StopKind
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"

    @classmethod
    def parse(cls, text: str) -> Stop:
        """The inverse of `str`; any other text is a user's reason to end the run."""
        kind, _, reason = text.strip().partition(": ")
        if kind not in list(StopKind):
            return cls(StopKind.END, text.strip() or f"{STOP_FILE} was made")
        return cls(StopKind(kind), reason)

    def as_error(self, message: str) -> RaydetError:
        """The error that the training loop raises for this request."""
        return _ERRORS[self.kind](message)


def request_stop(directory: Path, kind: StopKind, reason: str) -> None:
    """Ask the workers of the run in `directory` to save and stop, within seconds and a step.

    A restart replaces no other request.
    """
    if kind != StopKind.RESTART or requested_stop(directory) is None:
        write_atomically(directory / STOP_FILE, str(Stop(kind, reason)))


def requested_stop(directory: Path) -> Stop | None:
    """The current stop request; None: there is none."""
    try:
        return Stop.parse((directory / STOP_FILE).read_text())
    except FileNotFoundError:
        return None
