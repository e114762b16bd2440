"""A study on a local Ray leaves nothing behind: a cluster can then be started as README says."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.study.conftest import environment, names

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"one machine, as a cluster of one node:\n\n```sh\n(.*?)```", re.DOTALL)
PORTS = (6379, 8265)
"""Default ports of `ray start --head`."""


@pytest.fixture
def user() -> Iterator[dict[str, str]]:
    """The environment of a user with an empty home directory, in an activated virtual environment."""
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"another program listens on port {port}")
    with tempfile.TemporaryDirectory(prefix="raydet-home-", ignore_cleanup_errors=True) as home:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        plain = {name: value for name, value in environment().items() if not name.startswith("XDG_")}
        yield plain | {"HOME": home, "PATH": path}
        for process in psutil.process_iter():  # `ray stop` would end every Ray of this machine
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == home:
                    process.kill()


def run(command: str, user: dict[str, str], directory: Path) -> None:
    done = subprocess.run(
        ["bash", "-euc", command],
        env=user,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def files_in(directory: str) -> list[Path]:
    return [path for path in Path(directory).rglob("*") if path.is_file()]


def test_a_cluster_starts_after_a_demo_as_in_the_readme(user: dict[str, str], tmp_path: Path) -> None:
    clone = tmp_path / "raydet"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    demo = "python -m raydet.tune --space gaff_phase2 --recipe demo --epochs 1 --max-trials 1 --storage runs/demo"
    run(demo, user, clone)
    assert files_in(user["HOME"]) == []
    found = BLOCK.search((ROOT / "README.md").read_text())
    assert found is not None
    commands = [line for line in found[1].splitlines() if line != "ray stop"]
    assert len(commands) == 3
    run("\n".join(commands), user, clone)
    assert names(clone / "runs" / "job", "finished") == {"control_rgb": 1}
    assert files_in(user["HOME"]) == []
