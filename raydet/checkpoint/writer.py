"""Writing the checkpoints of a run in the background, and deleting old ones."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raydet.checkpoint.blocks import HostCopy, blocks_to_write, describe, lane_blocks, read_index
from raydet.checkpoint.load import CARRY, checkpoint_tensors, shard_name
from raydet.checkpoint.manifest import (
    MANIFEST,
    STATE,
    FileInfo,
    Manifest,
    read_manifest,
    sync_directory,
    write_durably,
)
from raydet.checkpoint.retention import checkpoint_name, checkpoints_to_drop, newest_checkpoint
from raydet.errors import CheckpointError, HostMemoryError, PreemptedError, RaydetError, WorkerLostError
from raydet.parallel.collectives import World, broadcast_text, gather_texts, host_group
from raydet.parallel.parallelize import unwrapped
from raydet.resilience.current_phase import notify
from raydet.structures import Carry

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class _Pending:
    """A checkpoint whose tensors are in host memory."""

    name: str
    state: str
    score: float | None
    optimizer: str
    tensors: Mapping[str, str]
    """Shape and dtype of everything that the ranks write together."""


class CheckpointWriter:
    """Writes checkpoints into `<run>/checkpoints/` in the background, on every rank.

    A checkpoint is written under a hidden name and renamed when it is complete: a crash at any time leaves either all
    of it or nothing under its name.
    """

    def __init__(self, directory: Path, *, keep: int, world: World) -> None:
        """Must be called on every rank.

        Args:
            directory: parent of all checkpoints, shared by all ranks.
            keep: how many of the best to keep, beside the newest.
        """
        self.directory = directory
        self.keep = keep
        self.world = world
        # A separate group: background messages must not be mixed up with those of the training steps.
        self._group = host_group(world)
        self._copy = HostCopy(pinned=world.device.type == "cuda")
        self._thread: threading.Thread | None = None
        self._error: RaydetError | None = None

    def save(
        self,
        epoch: int,
        *,
        step: int | None = None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, object],
        score: float | None,
        carry: Carry | None = None,
    ) -> float:
        """Copy everything to the host and write it in the background; must be called on every rank.

        Args:
            epoch: epochs completed.
            step: steps completed, within an epoch only. A checkpoint of the same epoch and step is replaced.
            state: plain JSON.
            score: the higher the better.

        Returns:
            Seconds for which the caller was blocked: by the rest of the previous write, and by the copy.

        Raises:
            CheckpointError: the previous checkpoint could not be written.
        """
        started = time.perf_counter()
        self.wait()
        tensors, buffers = checkpoint_tensors(unwrapped(model), optimizer)
        memory = {f"{CARRY}{name}": rows for name, rows in (carry or {}).items()}
        self._copy.take([*blocks_to_write(tensors, buffers, self.world), *lane_blocks(memory, self.world)])
        written = {name: describe(x.shape, x.dtype) for name, x in (tensors | buffers).items()}
        for name, rows in memory.items():
            written[name] = describe((len(rows) * self.world.world_size, *rows.shape[1:]), rows.dtype)
        pending = _Pending(
            name=checkpoint_name(epoch, step),
            state=json.dumps(state, indent=2) + "\n",
            score=score if score is not None and math.isfinite(score) else None,
            optimizer=type(optimizer).__name__,
            tensors=written,
        )
        # A daemon thread: a process that fails elsewhere exits at once, without completing the draft.
        self._thread = threading.Thread(
            target=self._run, args=(pending,), name="raydet-checkpoint", daemon=True
        )
        self._thread.start()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Wait until the checkpoint in the background is complete on the disk.

        Raises:
            CheckpointError: some rank could not write it; raised once.
            WorkerLostError: another rank is gone.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait; an error of the write is only logged if another error is being raised."""
        try:
            self.wait()
        except RaydetError as error:
            says_all_is_saved = kind is not None and issubclass(kind, PreemptedError | HostMemoryError)
            if kind is None or says_all_is_saved:
                raise
            logger.error("%s", error)

    def _run(self, pending: _Pending) -> None:
        started = time.perf_counter()
        try:
            self._write(pending)
        except Exception as error:  # raised in the main thread by `wait`
            self._error = error if isinstance(error, RaydetError) else self._failure(pending, error)
            if self.world.is_main:
                self._remove_leftovers()  # a full disk needs the space
        else:
            if self.world.is_main:
                logger.info("%s written in %.1f s", pending.name, time.perf_counter() - started)

    def _write(self, pending: _Pending) -> None:
        notify("save-write")
        draft = self.directory / f".{pending.name}.draft"
        self._on_all_ranks(pending, lambda: self._make(draft) if self.world.is_main else None)
        shard = shard_name(self.world.rank, self.world.world_size)
        written = self._on_all_ranks(pending, lambda: {shard: self._copy.write(draft / shard)})
        files = {name: info for part in written for name, info in part.items()}
        notify("save-commit")
        self._on_all_ranks(
            pending, lambda: self._commit(pending, draft, files) if self.world.is_main else None
        )

    def _make(self, draft: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        draft.mkdir()

    def _commit(self, pending: _Pending, draft: Path, files: Mapping[str, FileInfo]) -> None:
        stored = {name: str(tensor) for name, tensor in read_index(draft / name for name in files).items()}
        if stored != pending.tensors:
            missing = sorted(set(pending.tensors.items()) - set(stored.items()))
            raise CheckpointError(f"the shards of {draft} are incomplete, first {missing[:1]}")
        files = {**files, STATE: write_durably(draft / STATE, pending.state)}
        manifest = Manifest(
            world_size=self.world.world_size, optimizer=pending.optimizer, score=pending.score, files=files
        )
        write_durably(draft / MANIFEST, manifest.as_text())
        sync_directory(draft)
        target = self.directory / pending.name
        if target.exists():  # damaged, otherwise it would not be written again
            _remove_atomically(target)
        draft.rename(target)
        sync_directory(self.directory)
        self._prune(newest=target)

    def _prune(self, *, newest: Path) -> None:
        scores = {}
        for path in self.directory.glob("epoch_*"):
            with contextlib.suppress(CheckpointError):  # never delete what cannot be read
                score = read_manifest(path).score
                scores[path] = -math.inf if score is None else score
        for path in checkpoints_to_drop(scores, newest=newest, keep=self.keep):
            try:
                _remove_atomically(path)
            except OSError as error:  # the new one is complete nevertheless
                logger.warning("cannot remove the old checkpoint %s: %s", path, error)

    def _remove_leftovers(self) -> None:
        for leftover in self.directory.glob(".epoch_*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _on_all_ranks(self, pending: _Pending, action: Callable[[], Any]) -> list[Any]:
        """The results of all ranks, as JSON values, or on every rank the error of the first that failed."""
        try:
            result = {"value": action()}
        except Exception as error:  # the other ranks are waiting
            result = {"error": str(self._failure(pending, error))}
        try:
            texts = gather_texts(json.dumps(result), self.world, self._group)
        except RuntimeError as error:  # torch.distributed has no exception type for it
            raise WorkerLostError(
                f"rank {self.world.rank}: another worker was lost while {pending.name} was written; "
                "earlier checkpoints are intact"
            ) from error
        results = [json.loads(text) for text in texts]
        for each in results:
            if "error" in each:
                raise CheckpointError(each["error"])
        return [each["value"] for each in results]

    def _failure(self, pending: _Pending, error: Exception) -> CheckpointError:
        rank = f" (rank {self.world.rank})" if self.world.world_size > 1 else ""
        hint = "; free some disk space" if isinstance(error, OSError) else ""
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return CheckpointError(
            f"cannot write the checkpoint {self.directory / pending.name}{rank}: {text}{hint}; "
            "earlier checkpoints are intact"
        )


def agreed_checkpoint(run_dir: Path, world: World) -> Path | None:
    """`newest_checkpoint` as rank 0 finds it, on every rank."""
    found = newest_checkpoint(run_dir) if world.is_main else None
    name = broadcast_text(found.name if found else "none", world, source=0)
    return None if name == "none" else run_dir / "checkpoints" / name


def _remove_atomically(checkpoint: Path) -> None:
    """Remove a checkpoint without ever leaving a part of it under its name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)
