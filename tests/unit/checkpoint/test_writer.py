"""Writing in the background of training: nothing is torn, nothing is lost, the caller waits only for a copy."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from raydet.checkpoint.load import load_checkpoint
from raydet.checkpoint.manifest import read_manifest, verify_checkpoint
from raydet.checkpoint.retention import checkpoints_to_drop, newest_checkpoint
from raydet.checkpoint.writer import CheckpointWriter
from raydet.config import SGDConfig
from raydet.engine.optim import build_optimizer
from raydet.errors import CheckpointError, OtherFormatError
from raydet.parallel.collectives import World


class Run:
    """A model whose weights are all equal to a number, and its checkpoints."""

    def __init__(self, run_dir: Path, *, keep: int = 9, width: int = 64) -> None:
        self.run_dir, self.checkpoints = run_dir, run_dir / "checkpoints"
        self.model = nn.Linear(width, width)
        self.optimizer = build_optimizer(SGDConfig(), self.model.parameters())
        self.writer = CheckpointWriter(self.checkpoints, keep=keep, world=World())

    def save(self, epoch: int, score: float | None = None) -> float:
        self.fill(float(epoch))
        return self.writer.save(
            epoch, model=self.model, optimizer=self.optimizer, state={"epoch": epoch}, score=score
        )

    def fill(self, value: float) -> None:
        for parameter in self.model.parameters():
            nn.init.constant_(parameter, value)
            self.optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, value)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.iterdir())

    def check(self, epoch: int) -> None:
        """The checkpoint of that epoch is the newest intact one and has the expected content."""
        path = newest_checkpoint(self.run_dir)
        assert path == self.checkpoints / f"epoch_{epoch:04d}"
        assert load_checkpoint(path, model=self.model, optimizer=self.optimizer) == {"epoch": epoch}
        states = [self.optimizer.state[parameter]["momentum_buffer"] for parameter in self.model.parameters()]
        assert all((x == epoch).all() for x in [*self.model.parameters(), *states])


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    with made.writer:
        yield made


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that blocks until the event is set."""
    event, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (event.wait(30), fsync(descriptor)))
    yield event
    event.set()


def test_the_caller_waits_for_the_copy_only(run: Run, gate: threading.Event) -> None:
    assert run.save(1) < 20
    run.fill(77.0)  # training continues
    assert newest_checkpoint(run.run_dir) is None
    threading.Timer(0.3, gate.set).start()
    assert 0.2 < run.save(2) < 10  # it waits for the previous one, and counts that
    run.fill(88.0)
    run.writer.wait()
    run.check(2)
    assert run.names() == ["epoch_0001", "epoch_0002"]
    shutil.rmtree(run.checkpoints / "epoch_0002")
    run.check(1)


@pytest.mark.parametrize("instant", range(1, 6))
def test_a_kill_at_any_time_leaves_all_or_nothing(instant: int, run: Run) -> None:
    """Killed in the fsync of: the shard, state.json, manifest.json, the draft, the directory of all checkpoints."""
    run.save(1)
    run.writer.wait()
    kill_at(instant, run)
    is_committed = instant == 5
    assert (".epoch_0002.draft" in run.names()) == (not is_committed)
    run.check(2 if is_committed else 1)
    run.save(3)
    run.writer.wait()
    run.check(3)
    assert not [name for name in run.names() if name.startswith(".")]


def kill_at(instant: int, run: Run) -> None:
    """Save epoch 2 in a process that is killed when it calls fsync for the n-th time."""
    calls = iter(range(1, 10))
    process = os.fork()
    if process == 0:
        os.fsync = lambda descriptor: (  # type: ignore[assignment]
            os.kill(os.getpid(), signal.SIGKILL) if next(calls) == instant else None
        )
        run.save(2)
        time.sleep(30)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL


def test_a_full_disk_is_one_error_and_the_last_good_one_stays(run: Run) -> None:
    run.save(1)
    run.writer.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        run.save(2)
        with pytest.raises(CheckpointError, match=r"epoch_0002: \[Errno 27\] File too large; free some disk"):
            run.save(3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert run.names() == ["epoch_0001"]
    run.writer.wait()  # raised once
    run.check(1)
    run.save(4)
    run.writer.wait()
    run.check(4)


def test_a_directory_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    run = Run(tmp_path)
    run.save(1)
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        run.writer.wait()


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    with run.writer:
        for epoch, score in enumerate((0.1, 0.5, None, 0.3, float("nan")), start=1):
            run.save(epoch, score)
    assert run.names() == ["epoch_0002", "epoch_0004", "epoch_0005"]
    again = Run(tmp_path, keep=1)  # the scores are on the disk
    with again.writer:
        again.save(6, 0.2)
    assert again.names() == ["epoch_0002", "epoch_0006"]


def test_what_cannot_be_read_is_not_removed(tmp_path: Path) -> None:
    """It may be of another version, or the disk may have failed for a moment."""
    run = Run(tmp_path, keep=2)
    with run.writer:
        run.save(1, 0.9)
        run.save(2, None)
        run.writer.wait()
        (run.checkpoints / "epoch_0001" / "manifest.json").unlink()
        run.save(3, 0.1)
    assert run.names() == ["epoch_0001", "epoch_0002", "epoch_0003"]


def test_a_checkpoint_of_another_version_stops_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1)
    with run.writer:
        run.save(1, 0.9)
    path = run.checkpoints / "epoch_0001" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(
        OtherFormatError, match="written by another version of raydet; continue with that version"
    ):
        newest_checkpoint(run.run_dir)


def test_what_to_drop() -> None:
    paths = [Path(f"epoch_{epoch:04d}") for epoch in range(4)]
    scores = dict(zip(paths, (0.1, 0.5, 0.3, 0.2), strict=True))
    assert checkpoints_to_drop(scores, newest=paths[3], keep=2) == [paths[0]]
    assert checkpoints_to_drop(scores, newest=paths[0], keep=1) == [paths[2], paths[3]]
    within = [Path(f"epoch_{epoch:04d}_step_00000009") for epoch in (2, 3)]
    scores |= dict.fromkeys(within, -1.0)
    assert checkpoints_to_drop(scores, newest=within[1], keep=1) == [within[0], paths[2], paths[0]]


def test_a_damaged_checkpoint_is_skipped_and_written_again(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in (1, 2):
        run.save(epoch)
    run.writer.wait()
    shard = run.checkpoints / "epoch_0002" / "shard-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "raydet"):
        run.check(1)
    assert "skipping a damaged checkpoint" in caplog.text
    assert str(shard) in caplog.text
    run.save(2)
    run.writer.wait()
    run.check(2)
    assert run.names() == ["epoch_0001", "epoch_0002"]


def test_a_missing_shard_is_named(run: Run) -> None:
    run.save(1)
    run.writer.wait()
    shard = run.checkpoints / "epoch_0001" / "shard-00001-of-00001.safetensors"
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard} is missing"):
        verify_checkpoint(run.checkpoints / "epoch_0001")


def test_the_state_is_that_of_the_moment(run: Run, gate: threading.Event) -> None:
    history = [{"epoch": 1}]
    run.writer.save(1, model=run.model, optimizer=run.optimizer, state={"history": history}, score=1.0)
    history.append({"epoch": 2})
    gate.set()
    run.writer.wait()
    path = run.checkpoints / "epoch_0001"
    assert json.loads((path / "state.json").read_text()) == {"history": [{"epoch": 1}]}
    assert read_manifest(path).score == 1.0
