"""How a study is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raydet.errors import StudyError
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.tune.budget import Budget
from raydet.tune.early_stopping import EarlyStopping


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """How a study is run; nothing here changes the result of a trial."""

    storage: Path
    """Directory of all studies, readable from every node."""
    seeds: int = 1
    max_trials: int | None = None
    concurrency: int | None = None
    workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: int | None = None
    use_gpu: bool | None = None
    wait_s: float | None = None
    """How long to wait for nodes before the first trial; None: half an hour, for what the cluster has or scales to."""
    fault_tolerance: FaultTolerance = FaultTolerance()  # noqa: RUF009  -- frozen
    retries: int = 1
    """How often a trial that failed is tried again, from its newest checkpoint, before it is given up."""
    retry_failed: bool = False
    """Trials that were given up by earlier commands get their chances anew."""
    early_stopping: EarlyStopping | None = None
    """For phases that only choose what goes on; None: every trial runs to its end."""
    budget: Budget = Budget()  # noqa: RUF009  -- frozen
    """Once it is spent, what runs saves and stops, and nothing starts any more."""
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        for flag in ("seeds", "max_trials", "concurrency", "workers", "cpus_per_worker"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise StudyError(f"--{flag.replace('_', '-')} wants at least 1, got {value}")
        if self.use_gpu is False and self.budget.gpu_hours is not None:
            raise StudyError("--budget-gpu-hours limits nothing with --cpu; take --budget-worker-hours")
        if self.retries < 0:
            raise StudyError(f"--retries wants at least 0, got {self.retries}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise StudyError(f"--min-workers wants 1 to --workers {self.workers}, got {self.min_workers}")
