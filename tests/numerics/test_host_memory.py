"""Before a host's memory ends, a run saves and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from raydet.checkpoint.retention import newest_checkpoint
from raydet.config import apply_overrides
from raydet.errors import EXIT_OUT_OF_MEMORY
from raydet.resilience.host_memory import host_memory
from tests.numerics.test_resume import EXPERIMENT

MIB = 2**20


@pytest.mark.slow
def test_a_run_saves_before_the_memory_ends(tmp_path: Path) -> None:
    config, run_dir = tmp_path / "config.json", tmp_path / "run"
    config.write_text(apply_overrides(EXPERIMENT, {"train.epochs": 500, "train.eval_every": 500}).to_json())
    command = [sys.executable, "-m", "raydet", "train", "--config", str(config), "--run-dir", str(run_dir)]
    command += ["--workers", "0", "--tracking-uri", "none", "--heartbeat-seconds", "4"]
    result = subprocess.run(
        [*command, "--host-memory-percent", "0.1"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == EXIT_OUT_OF_MEMORY, result.stdout + result.stderr
    assert "(host RAM, not GPU: " in result.stderr
    assert "by rank 0 (pid " in result.stderr
    assert result.stderr.count("\n") == 1
    checkpoint = newest_checkpoint(run_dir)
    assert checkpoint is not None
    assert json.loads((checkpoint / "state.json").read_text())["step"] > 0


@pytest.mark.parametrize(
    ("names", "cache"),
    [
        (("memory.max", "memory.current", "memory.stat"), "inactive_file"),
        (
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
            "total_inactive_file",
        ),
    ],
)
def test_the_memory_of_a_container(tmp_path: Path, names: tuple[str, ...], cache: str) -> None:
    (tmp_path / "memory").mkdir()
    active = cache.replace("inactive", "active")
    stat = f"anon 7\n{cache} {60 * MIB}\n{active} {40 * MIB}\n"
    for name, content in zip(names, (f"{512 * MIB}\n", f"{300 * MIB}\n", stat), strict=True):
        (tmp_path / name).write_text(content)
    assert host_memory(tmp_path) == (200 * MIB, 512 * MIB)


def test_a_container_without_a_limit_has_the_machines_memory(tmp_path: Path) -> None:
    for name, content in (("memory.max", "max\n"), ("memory.current", "1\n"), ("memory.stat", "")):
        (tmp_path / name).write_text(content)
    used, total = host_memory(tmp_path)
    assert total == psutil.virtual_memory().total
    assert 0 < used < total
