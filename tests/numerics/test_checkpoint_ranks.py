"""Checkpoints of several ranks: whatever number wrote one, any number goes on from it; what fails, fails for all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raydet.checkpoint.retention import newest_checkpoint
from tests.numerics.conftest import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three processes have written what they saw, see `checkpoint_ranks`: to start them costs the most."""
    directory = tmp_path_factory.mktemp("ranks")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.numerics.checkpoint_ranks", str(directory)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [3, -signal.SIGKILL, 3], "\n".join(outputs)
    return directory


@pytest.mark.parametrize(("what", "num_rows"), [("toy", 42), ("detector", 4)])
def test_any_number_of_ranks_goes_on_from_any_other(what: str, num_rows: int, directory: Path) -> None:
    rows = json.loads((directory / f"{what}-0.json").read_text())
    assert len(rows) == num_rows
    for row in rows:
        if row["loader"] is None:
            straight = row
            continue
        where = f"{row['kind']}: {row['saver']} -> {row['loader']}"
        assert row["tensors"] == straight["tensors"], where
        assert row["losses"] == pytest.approx(straight["losses"], rel=1e-5), where
        if row["loader"] == row["saver"]:
            assert row["losses"] == straight["losses"], where


@pytest.fixture
def told(directory: Path) -> list[dict[str, Any]]:
    """What each rank was told, see `checkpoint_ranks.trouble`."""
    return [json.loads((directory / f"trouble-{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("full disk", r"epoch_0002 (rank 1): [Errno 27] File too large; free some disk space"),
        ("full disk at the end", r"epoch_0005 (rank 0): [Errno 27] File too large; free some disk space"),
        ("one cannot read", "nowhere is not a complete checkpoint"),
        ("damaged", "shard-00003-of-00003.safetensors: expected sha256"),
        ("another model", "belongs to another model: 9 tensors differ"),
    ],
)
def test_where_one_rank_fails_all_say_the_same(case: str, text: str, told: list[dict[str, Any]]) -> None:
    assert text in told[0][case]
    assert told[0][case] == told[1][case] == told[2][case]
    assert "\n" not in told[0][case]


def test_what_failed_leaves_nothing_and_hinders_nothing(told: list[dict[str, Any]]) -> None:
    assert told[0]["once only"] is None
    assert told[0]["left behind"] == ["epoch_0001"]
    assert told[0]["room again"] == ["epoch_0001", "epoch_0004"]


def test_the_death_of_one_rank_is_no_riddle_to_the_others(directory: Path) -> None:
    checkpoints = directory / "death" / "checkpoints"
    for rank in (0, 2):
        error = json.loads((directory / f"death-{rank}.json").read_text())
        assert error.startswith(f"rank {rank}: another worker was lost while epoch_0002 was written")
        assert "\n" not in error
    assert newest_checkpoint(directory / "death") == checkpoints / "epoch_0001"
    assert not (checkpoints / "epoch_0002").exists()
