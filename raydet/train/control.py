"""What may come between two steps: a checkpoint that is due, a request to stop. The same on every rank."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from raydet.errors import (
    ConfigError,
    HostMemoryError,
    PreemptedError,
    RaydetError,
    RestartRequestedError,
    StoppedEarlyError,
)
from raydet.parallel.collectives import World, any_over_ranks, gather_texts, host_group
from raydet.train.record import write_atomically

STOP_FILE = "stop_requested"
"""Made in a run's directory, asks its workers to save and stop, on whatever machines they are: `order: reason`."""
ASK_INTERVAL_S = 2.0
"""Between two looks at what takes more than a look: files, the cluster's notices."""


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


@dataclass(slots=True)
class StopRequest:
    """Why this process was asked to stop; set by a signal handler or another thread."""

    made: Stop | None = None

    def ask(self, stop: Stop) -> None:
        """The first one stands."""
        self.made = self.made or stop


@contextmanager
def stopping_on_sigterm(stop: StopRequest) -> Iterator[None]:
    """While the block runs, SIGTERM (pre-emption, `docker stop`, schedulers) is a request, not the end."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.ask(Stop(StopOrder.END, "SIGTERM"))

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do after a step."""

    save: bool = False
    stop: Stop | None = None
    """Save and stop."""


@dataclass(slots=True)
class Control:
    """Asked after every step, on every rank.

    The ranks agree through the host, in a group of its own: the GPU is not waited for.
    """

    world: World
    run_dir: Path
    upkeep: Upkeep
    request: StopRequest
    ask_cluster: Callable[[], str | None] = lambda: None
    """Why the cluster wants the run to stop, if it does; called on every rank at the same step."""
    _group: dist.ProcessGroup | None = None
    _saved_at: float = 0.0
    _asked_at: float = 0.0

    def __post_init__(self) -> None:
        self._group = host_group(self.world)
        self._saved_at = self._asked_at = time.monotonic()

    def after_step(self, step: int) -> Verdict:
        """Whether to go on, to save, or to save and stop.

        Args:
            step: steps completed.
        """
        wants_save, wants_answer = self._is_due(step), self._wants_to_ask()
        flags = (wants_save, wants_answer, self.request.made is not None)
        save, ask, stop = any_over_ranks(flags, self.world, self._group)
        if ask:
            self._asked_at = time.monotonic()
            reason = self.ask_cluster()  # the same everywhere
            if reason is not None:
                self.request.ask(Stop(StopOrder.RESTART, reason))
                stop = True
        if stop:
            orders = gather_texts(str(self.request.made or ""), self.world, self._group)
            return Verdict(save=True, stop=Stop.parse(next(filter(None, orders))))
        return Verdict(save=save)

    def saved(self) -> None:
        """A checkpoint was taken: the time begins anew."""
        self._saved_at = time.monotonic()

    def _is_due(self, step: int) -> bool:
        every_s, every_steps = self.upkeep.checkpoint_s, self.upkeep.checkpoint_steps
        if every_steps is not None and step % every_steps == 0:
            return True
        return self.world.is_main and every_s is not None and time.monotonic() - self._saved_at >= every_s

    def _wants_to_ask(self) -> bool:
        if not self.world.is_main or time.monotonic() - self._asked_at < ASK_INTERVAL_S:
            return False
        ordered = ordered_stop(self.run_dir)
        if ordered is not None:
            self.request.ask(ordered)
        return True
