"""What happens between two steps: a checkpoint that is due, a request to stop. The same on every rank."""

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
"""Time between two checks that are slow: of the stop file and of the cluster's notices."""


@dataclass(slots=True)
class StopRequest:
    """Why this process was asked to stop; set by a signal handler or another thread."""

    stop: Stop | None = None

    def ask(self, stop: Stop) -> None:
        """Ask to stop; an earlier request takes precedence."""
        self.stop = self.stop or stop


@contextmanager
def stopping_on_sigterm(request: StopRequest) -> Iterator[None]:
    """While the block runs, SIGTERM (pre-emption, `docker stop`, schedulers) is a request, not the end."""

    def handle(number: int, frame: FrameType | None) -> None:
        request.ask(Stop(StopKind.END, "SIGTERM"))

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
    """Decides after every step, on every rank, whether to save or to stop.

    The ranks agree through the host, in a process group of their own, so that the GPU is not synchronized.
    """

    world: World
    run_dir: Path
    fault_tolerance: FaultTolerance
    request: StopRequest
    ask_cluster: Callable[[], str | None] = lambda: None
    """Why the cluster asks the run to stop, if it does; called on every rank at the same step."""
    _group: dist.ProcessGroup | None = None
    _saved_at: float = 0.0
    _asked_at: float = 0.0

    def __post_init__(self) -> None:
        self._group = host_group(self.world)
        self._saved_at = self._asked_at = time.monotonic()

    def after_step(self, step: int) -> Verdict:
        """Whether to continue, to save, or to save and stop, after `step` completed steps."""
        flags = (self._is_checkpoint_due(step), self._is_check_due(), self.request.stop is not None)
        save, ask, stop = any_over_ranks(flags, self.world, self._group)
        if ask:
            self._asked_at = time.monotonic()
            reason = self.ask_cluster()  # the same on every rank
            if reason is not None:
                self.request.ask(Stop(StopKind.RESTART, reason))
                stop = True
        if stop:
            requests = gather_texts(str(self.request.stop or ""), self.world, self._group)
            return Verdict(save=True, stop=Stop.parse(next(filter(None, requests))))
        return Verdict(save=save)

    def saved(self) -> None:
        """Restart the checkpoint interval: a checkpoint was taken."""
        self._saved_at = time.monotonic()

    def _is_checkpoint_due(self, step: int) -> bool:
        every_s, every_steps = self.fault_tolerance.checkpoint_s, self.fault_tolerance.checkpoint_steps
        if every_steps is not None and step % every_steps == 0:
            return True
        return self.world.is_main and every_s is not None and time.monotonic() - self._saved_at >= every_s

    def _is_check_due(self) -> bool:
        """Whether to ask the cluster at this step; rank 0 also reads the stop file then."""
        if not self.world.is_main or time.monotonic() - self._asked_at < ASK_INTERVAL_S:
            return False
        stop = requested_stop(self.run_dir)
        if stop is not None:
            self.request.ask(stop)
        return True
