"""The checkpoints of a run's directory: their names, which are kept, which is the newest."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from raydet.errors import CheckpointError
from raydet.parallel.checkpoint import MANIFEST, verify_checkpoint

logger = logging.getLogger("raydet")


class LocalCheckpoints:
    """Publishes into `<run>/checkpoints/` where no Ray Train does it."""

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep = keep
        self._scores = {
            path: _score(path) for path in self.directory.glob("epoch_*") if (path / MANIFEST).exists()
        }

    def __call__(self, row: dict[str, Any], checkpoint: Path | None) -> None:
        """Move the checkpoint into place and drop the worst beyond `keep`, never the newest."""
        if checkpoint is None:
            return
        self.directory.mkdir(exist_ok=True)
        target = self.directory / checkpoint_name(row["epoch"])
        draft = target.with_name(f".{target.name}")
        for leftover in (target, draft):  # of an attempt that was killed here
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(checkpoint, draft)
        draft.rename(target)
        self._scores[target] = row.get("mAP") or -1.0
        for path in checkpoints_to_drop(self._scores, newest=target, keep=self.keep):
            shutil.rmtree(path)
            del self._scores[path]


def checkpoints_to_drop(scores: dict[Path, float], *, newest: Path, keep: int) -> list[Path]:
    """Which checkpoints to delete so that the `keep` best and the newest remain."""
    ranked = sorted(scores, key=lambda path: scores[path], reverse=True)
    return [path for path in ranked[keep:] if path != newest]


def checkpoint_name(epoch: int) -> str:
    """Directory name of the checkpoint after `epoch` epochs."""
    return f"epoch_{epoch:04d}"


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of the latest epoch whose files are all as they were written; damaged ones are passed over."""
    for path in sorted(run_dir.glob("checkpoints/epoch_*"), reverse=True):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            logger.warning("passing over a checkpoint: %s", error)
        else:
            return path
    return None


def _score(checkpoint: Path) -> float:
    history = json.loads((checkpoint / "state.json").read_text())["history"]
    return history[-1].get("mAP") or -1.0
