"""The checkpoints of a run by their names: which is the newest whole one, which may go. Reads no tensor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from raydet.checkpoint.manifest import verify_checkpoint
from raydet.errors import CheckpointError, OtherFormatError

logger = logging.getLogger("raydet")


def checkpoints_to_drop(scores: Mapping[Path, float], *, newest: Path, keep: int) -> list[Path]:
    """Which checkpoints to delete so that the `keep` best and the newest remain.

    One from within an epoch serves to continue only: it goes as soon as there is a newer one, and the last whole epoch
    stays beside it.
    """
    ranked = sorted(scores, key=lambda path: (scores[path], path.name), reverse=True)
    whole = [path for path in ranked if not _is_within_epoch(path)]
    within = [path for path in ranked if _is_within_epoch(path)]
    needed = {newest}
    if _is_within_epoch(newest):
        needed.add(max(whole, key=lambda path: path.name, default=newest))
    return [path for path in [*within, *whole[keep:]] if path not in needed]


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Directory name of a checkpoint; by name they sort as they were made.

    Args:
        epoch: epochs completed.
        step: steps completed, where the checkpoint was taken within an epoch.
    """
    return f"epoch_{epoch:04d}" + ("" if step is None else f"_step_{step:08d}")


def _is_within_epoch(path: Path) -> bool:
    return "_step_" in path.name


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of the latest epoch whose files are all as they were written; damaged ones are passed over."""
    for path in sorted(run_dir.glob("checkpoints/epoch_*"), reverse=True):
        try:
            verify_checkpoint(path)
        except OtherFormatError:  # it is good: to start again without it would lose it
            raise
        except CheckpointError as error:
            logger.warning("passing over a checkpoint: %s", error)
        else:
            return path
    return None
