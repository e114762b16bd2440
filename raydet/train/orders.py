"""What a driver tells its workers: how to keep a run from losing work, when to stop and what is to become of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from raydet.errors import (
    ConfigError,
    HostMemoryError,
    PreemptedError,
    RaydetError,
    RestartRequestedError,
    StoppedEarlyError,
)
from raydet.train.record import write_atomically

STOP_FILE = "stop_requested"
"""Made in a run's directory, asks its workers to save and stop, on whatever machines they are: `order: reason`."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How a run is kept from losing work; nothing here changes its results."""

    checkpoint_s: float | None = 300.0
    """Seconds between two checkpoints within an epoch; None: only at the ends of epochs."""
    checkpoint_steps: int | None = None
    """The same in optimiser steps."""
    heartbeat_s: float = 30.0
    """A worker that is silent for one and a half of these is stopped, swapped out or gone."""
    stall_s: float = 1800.0
    """Workers that are in the same place for so long hang."""
    host_memory: float = 0.93
    """The part of a host's memory that may be in use before its runs save and start again; Ray kills at 0.95."""
    max_failures: int = 3
    """Restarts after the loss of a worker, before the run counts as failed."""

    def __post_init__(self) -> None:
        if self.stall_s < 2 * self.heartbeat_s:
            raise ConfigError(
                f"--stall-minutes wants at least two --heartbeat-seconds ({2 * self.heartbeat_s:g} s), "
                f"got {self.stall_s:g} s"
            )
        if not 0 < self.host_memory <= 1:
            raise ConfigError(
                f"--host-memory-percent wants more than 0 and at most 100, got {100 * self.host_memory:g}"
            )


class StopOrder(StrEnum):
    """What is to become of a run that is asked to stop."""

    END = "end"
    """The next command goes on."""
    EARLY = "early"
    """Enough is known about it."""
    RESTART = "restart"
    """It starts again at once, elsewhere or with more workers."""
    MEMORY = "memory"
    """It starts again at once, in fresh processes."""


_ERRORS: Mapping[StopOrder, type[RaydetError]] = {
    StopOrder.END: PreemptedError,
    StopOrder.EARLY: StoppedEarlyError,
    StopOrder.RESTART: RestartRequestedError,
    StopOrder.MEMORY: HostMemoryError,
}


@dataclass(frozen=True, slots=True)
class Stop:
    """An order and its reason."""

    order: StopOrder
    reason: str

    def __str__(self) -> str:
        return f"{self.order}: {self.reason}"

    @classmethod
    def parse(cls, text: str) -> Stop:
        """What `str` gave; whatever else stands there is the reason of somebody who wants the run to end."""
        order, _, reason = text.strip().partition(": ")
        if order not in list(StopOrder):
            return cls(StopOrder.END, text.strip() or f"{STOP_FILE} was made")
        return cls(StopOrder(order), reason)

    def as_error(self, message: str) -> RaydetError:
        """How the order comes out of the loop."""
        return _ERRORS[self.order](message)


def order_stop(directory: Path, order: StopOrder, reason: str) -> None:
    """Have the workers of the run in `directory` save and stop, within seconds and a step.

    A new start replaces no other order.
    """
    if order == StopOrder.RESTART and ordered_stop(directory) is not None:
        return
    write_atomically(directory / STOP_FILE, str(Stop(order, reason)))


def ordered_stop(directory: Path) -> Stop | None:
    """The order that stands, if one does."""
    try:
        text = (directory / STOP_FILE).read_text()
    except FileNotFoundError:
        return None
    return Stop.parse(text)
