"""What may come between two steps: a checkpoint that is due, a request to stop. The same on every rank."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch.distributed as dist

from raydet.parallel.collectives import World, any_over_ranks, gather_texts, host_group
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.stop_signal import Stop, StopKind, requested_stop

ASK_INTERVAL_S = 2.0
"""Between two looks at what takes more than a look: files, the cluster's notices."""


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
        stop.ask(Stop(StopKind.END, "SIGTERM"))

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
    fault_tolerance: FaultTolerance
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
                self.request.ask(Stop(StopKind.RESTART, reason))
                stop = True
        if stop:
            orders = gather_texts(str(self.request.made or ""), self.world, self._group)
            return Verdict(save=True, stop=Stop.parse(next(filter(None, orders))))
        return Verdict(save=save)

    def saved(self) -> None:
        """A checkpoint was taken: the time begins anew."""
        self._saved_at = time.monotonic()

    def _is_due(self, step: int) -> bool:
        every_s, every_steps = self.fault_tolerance.checkpoint_s, self.fault_tolerance.checkpoint_steps
        if every_steps is not None and step % every_steps == 0:
            return True
        return self.world.is_main and every_s is not None and time.monotonic() - self._saved_at >= every_s

    def _wants_to_ask(self) -> bool:
        if not self.world.is_main or time.monotonic() - self._asked_at < ASK_INTERVAL_S:
            return False
        ordered = requested_stop(self.run_dir)
        if ordered is not None:
            self.request.ask(ordered)
        return True
