from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from raydet.runs.usage import USAGE_FILE, Usage, record_usage, usage_of


def attempt(run_dir: Path, *, seconds: float, workers: int, use_gpu: bool = True) -> None:
    with record_usage(run_dir, since=time.time() - seconds, workers=workers, use_gpu=use_gpu):
        pass


def test_every_attempt_counts_with_its_own_workers(tmp_path: Path) -> None:
    assert usage_of(tmp_path) == Usage()
    attempt(tmp_path, seconds=100, workers=4)
    with pytest.raises(RuntimeError), record_usage(tmp_path, since=time.time() - 50, workers=2, use_gpu=True):
        raise RuntimeError("a loss is not finite")
    attempt(tmp_path, seconds=10, workers=3, use_gpu=False)
    usage = usage_of(tmp_path)
    assert usage.gpu_s == pytest.approx(500, abs=1)
    assert usage.cpu_worker_s == pytest.approx(30, abs=1)


def test_a_killed_attempt_counts_up_to_its_last_sign_of_life(tmp_path: Path) -> None:
    began = time.time() - 1000
    killed = [{"since": began, "until": None, "workers": 2, "use_gpu": True}]
    (tmp_path / USAGE_FILE).write_text(json.dumps(killed))
    os.utime(tmp_path / USAGE_FILE, (began, began))
    (tmp_path / "progress.json").write_text("{}")
    os.utime(tmp_path / "progress.json", (began + 60, began + 60))
    assert usage_of(tmp_path).gpu_s == pytest.approx(120, abs=0.1)
    attempt(tmp_path, seconds=5, workers=2)
    assert usage_of(tmp_path).gpu_s == pytest.approx(130, abs=1)


def test_only_the_main_worker_writes(tmp_path: Path) -> None:
    with record_usage(tmp_path, since=0.0, workers=2, use_gpu=True, enabled=False):
        assert list(tmp_path.iterdir()) == []
