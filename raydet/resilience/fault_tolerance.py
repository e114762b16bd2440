"""How often a run saves, and when it gives up."""

from __future__ import annotations

from dataclasses import dataclass

from raydet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FaultTolerance:
    """How a run is kept from losing work; nothing here changes its results."""

    checkpoint_s: float | None = 300.0
    """Seconds between two checkpoints within an epoch; None: only at the ends of epochs."""
    checkpoint_steps: int | None = None
    """Optimizer steps between two checkpoints; None: only the time counts."""
    heartbeat_s: float = 30.0
    """A worker that is silent for 1.5 of these counts as stopped, swapped out or gone."""
    stall_s: float = 1800.0
    """Workers that make no progress for this long have stalled."""
    host_memory: float = 0.93
    """Fraction of a host's memory that may be in use before its runs save and restart; Ray kills at 0.95."""
    max_failures: int = 3
    """Restarts after the loss of a worker, before the run counts as failed."""

    def __post_init__(self) -> None:
        if self.stall_s < 2 * self.heartbeat_s:
            raise ConfigError(
                f"--stall-minutes must be at least two --heartbeat-seconds ({2 * self.heartbeat_s:g} s), "
                f"got {self.stall_s:g} s"
            )
        if not 0 < self.host_memory <= 1:
            raise ConfigError(
                f"--host-memory-percent must be above 0 and at most 100, got {100 * self.host_memory:g}"
            )
