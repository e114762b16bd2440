"""How a study is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raydet.errors import StudyError
from raydet.launch.worker_options import WorkerOptions
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.track.base import Upload
from raydet.tune.budget import Budget
from raydet.tune.early_stopping import EarlyStopping


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """How a study is run; no option changes the result of a trial."""

    storage: Path
    """Directory of all studies, readable from every node."""
    seeds: int = 1
    max_trials: int | None = None
    concurrency: int | None = None
    worker_options: WorkerOptions = WorkerOptions()  # noqa: RUF009  -- frozen
    fault_tolerance: FaultTolerance = FaultTolerance()  # noqa: RUF009  -- frozen
    retries: int = 1
    """How often a failed trial is retried, from its newest checkpoint."""
    retry_failed: bool = False
    """Whether failures in earlier commands do not count: trials get all of their retries again."""
    early_stopping: EarlyStopping | None = None
    """Applies to screening phases; None: every trial runs to its last epoch."""
    budget: Budget = Budget()  # noqa: RUF009  -- frozen
    """Once it is spent, running trials save and stop, and no further trial starts."""
    tracking_uri: str | None = None
    log_checkpoints: Upload = "none"
    """Which checkpoints of a finished trial are copied to the tracker."""
    task_code: Path | None = None
    """The Python file with the code of a custom task, see `raydet.tasks.build`."""

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("seeds", "max_trials", "concurrency")}
        for flag, value in (counts | {"workers": self.worker_options.workers}).items():
            if value is not None and value < 1:
                raise StudyError(f"--{flag.replace('_', '-')} must be at least 1, got {value}")
        if self.worker_options.use_gpu is False and self.budget.gpu_hours is not None:
            raise StudyError("--budget-gpu-hours limits nothing with --cpu; use --budget-worker-hours")
        if self.retries < 0:
            raise StudyError(f"--retries must be at least 0, got {self.retries}")
