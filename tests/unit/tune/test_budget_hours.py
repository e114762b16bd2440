from __future__ import annotations

import time
from pathlib import Path

import pytest

from raydet.errors import StudyError
from raydet.launch.worker_options import WorkerOptions
from raydet.runs.usage import Usage, record_usage
from raydet.tune.budget import Budget, UsageMeter
from raydet.tune.journal import Journal
from raydet.tune.options import StudyOptions


def record_attempt(root: Path, directory: str, seconds: float) -> None:
    (root / directory).mkdir(parents=True, exist_ok=True)
    with record_usage(root / directory, since=time.time() - seconds, workers=1, use_gpu=True):
        pass


def test_usage_is_summed_over_commands(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        meter = UsageMeter(tmp_path, journal)
        for name, seconds in (("one", 100), ("two", 10)):
            journal.append("started", key=name, name=name, directory=f"grid/{name}")
            meter.started(name, f"grid/{name}")
            record_attempt(tmp_path, f"grid/{name}", seconds)
        assert meter.total().gpu_s == pytest.approx(110, abs=1)  # both are running
        journal.append("failed", key="one", reason="test", usage=meter.ended("one", "grid/one").as_json())
        meter.started("one", "grid/one")
        journal.append("started", key="one", name="one", directory="grid/one")
        record_attempt(tmp_path, "grid/one", 1000)  # the driver is killed, and is not notified of the end
        assert meter.total().gpu_s == pytest.approx(1110, abs=1)
    with Journal(tmp_path) as journal:
        meter = UsageMeter(tmp_path, journal)
        assert meter.total().gpu_s == pytest.approx(1110, abs=1)
        assert meter.of_trial("one").gpu_s == pytest.approx(1100, abs=1)
        meter.ended("one", "grid/one")
        meter.ended("two", "grid/two")
        assert meter.total("grid").gpu_s == pytest.approx(1110, abs=1)
        assert meter.total("controls") == Usage()


def test_a_budget_limits_its_own_kind_of_hours() -> None:
    budget = Budget(gpu_hours=1)
    assert not budget.is_spent(Usage(gpu_s=3599, cpu_worker_s=1e6))
    assert budget.is_spent(Usage(gpu_s=3600))
    assert not Budget().is_spent(Usage(gpu_s=1e9))
    assert Budget(cpu_worker_hours=0.5).is_spent(Usage(cpu_worker_s=1800))


def test_budgets_without_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="--budget-worker-hours must be more than 0, got 0"):
        Budget(cpu_worker_hours=0)
    with pytest.raises(StudyError, match="limits nothing with --cpu"):
        StudyOptions(
            storage=tmp_path, worker_options=WorkerOptions(use_gpu=False), budget=Budget(gpu_hours=1)
        )
