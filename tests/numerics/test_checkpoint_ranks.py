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

from raydet.train.checkpoints import newest_checkpoint
from tests.numerics.conftest import Start, free_port, start_processes

COMMAND = [sys.executable, "-m", "tests.numerics.checkpoint_ranks"]


@pytest.mark.parametrize("what", ["toy", "detector"])
def test_any_number_of_ranks_goes_on_from_any_other(what: str, tmp_path: Path, start: Start) -> None:
    start([*COMMAND, str(tmp_path), what], workers=3)
    rows = json.loads((tmp_path / f"{what}-0.json").read_text())
    assert len(rows) == {"toy": 42, "detector": 4}[what]
    for row in rows:
        if row["loader"] is None:
            straight = row
            continue
        where = f"{row['kind']}: {row['saver']} -> {row['loader']}"
        assert row["tensors"] == straight["tensors"], where
        assert row["losses"] == pytest.approx(straight["losses"], rel=1e-5), where
        if row["loader"] == row["saver"]:
            assert row["losses"] == straight["losses"], where


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three ranks was told, see `checkpoint_ranks.trouble`."""
    directory = tmp_path_factory.mktemp("trouble")
    start_processes([*COMMAND, str(directory), "trouble"], workers=3)
    return [json.loads((directory / f"trouble-{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("full disk", r"epoch_0002 (rank 1): [Errno 27] File too large; free some disk space"),
        ("full disk at the end", r"epoch_0005 (rank 0): [Errno 27] File too large; free some disk space"),
        ("one cannot read", "nowhere is not a complete checkpoint"),
        ("damaged", "shard-00003-of-00003.safetensors: wanted sha256"),
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


def test_the_death_of_one_rank_is_no_riddle_to_the_others(tmp_path: Path) -> None:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3"}
    processes = [
        subprocess.Popen(
            [*COMMAND, str(tmp_path), "death"],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [3, -signal.SIGKILL, 3]
    for rank in (0, 2):
        assert (
            f"cannot write the checkpoint {tmp_path}/checkpoints/epoch_0002 (rank {rank}): " in outputs[rank]
        )
        assert "\n" not in outputs[rank]
    checkpoints = tmp_path / "checkpoints"
    assert newest_checkpoint(tmp_path) == checkpoints / "epoch_0001"
    assert not (checkpoints / "epoch_0002").exists()
