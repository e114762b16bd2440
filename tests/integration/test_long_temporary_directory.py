"""TMPDIR as a scheduler sets it, deep below the user's directory: Unix sockets want short names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raydet.errors import EXIT_USAGE
from raydet.launch.cluster import MAX_TMPDIR

SMALL = ["--epochs", "1", "--tracking-uri", "none"]
SMALL += ["--set", "data.source.num_sequences=12", "--set", "data.source.frames_per_sequence=1"]


def train(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raydet", "train", "--recipe", "demo", "--workers", "1", *SMALL]
    return subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def deep(tmp_path: Path) -> Path:
    directory = tmp_path / "net" / "scratch" / "people" / "department-of-imaging" / "slurm_jobdir" / "1355700"
    directory.mkdir(parents=True)
    assert len(str(directory)) > MAX_TMPDIR
    return directory


@pytest.mark.ray
def test_a_long_one_does_not_matter(tmp_path: Path) -> None:
    found = train(tmp_path, TMPDIR=str(deep(tmp_path)))
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "run" / "final_results.json").is_file()


def test_one_for_ray_that_is_too_long_is_refused(tmp_path: Path) -> None:
    found = train(tmp_path, RAY_TMPDIR=str(deep(tmp_path)))
    assert found.returncode == EXIT_USAGE
    assert f"RAY_TMPDIR is too long: expected at most {MAX_TMPDIR} bytes" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
