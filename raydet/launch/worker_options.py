"""What a run, or every trial of a study, asks the cluster for."""

from __future__ import annotations

from dataclasses import dataclass

from raydet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How many workers, on what; no option changes the result of a run.

    Raises:
        ConfigError: a number is out of range.
    """

    workers: int = 1
    """0: this process, without Ray, or one rank under `torchrun`; for single runs only."""
    min_workers: int | None = None
    """How few may continue after the loss of nodes; None: no fewer than `workers`."""
    cpus_per_worker: int | None = None
    """Threads; None: with GPUs, the CPUs that a node has per GPU; else an even share of the CPUs."""
    use_gpu: bool | None = None
    """None: yes, if the cluster has GPUs, or may have."""
    wait_s: float | None = None
    """Longest wait for nodes; None: half an hour, if the cluster has them or scales to them."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"--workers must be 0 or more, got {self.workers}")
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise ConfigError(f"--cpus-per-worker must be at least 1, got {self.cpus_per_worker}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ConfigError(f"--min-workers must be 1 to --workers {self.workers}, got {self.min_workers}")
