"""How a run is kept from losing work."""

from __future__ import annotations

from dataclasses import dataclass

from raydet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FaultTolerance:
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
