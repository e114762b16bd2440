"""The newest intact checkpoint of a run, and which checkpoints to delete. Reads no tensor."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from raydet.checkpoint.manifest import verify_checkpoint
from raydet.errors import CheckpointError, OtherFormatError

WITHIN_EPOCH = "_step_"
"""Part of the names of checkpoints within an epoch."""

logger = logging.getLogger("raydet")


def checkpoints_to_drop(scores: Mapping[Path, float], *, newest: Path, keep: int) -> list[Path]:
    """Which checkpoints to delete so that the `keep` best and the newest remain.

    A checkpoint within an epoch is only for resuming: it is deleted as soon as there is a newer one, and until then the
    last one at the end of an epoch stays beside it.
    """
    ranked = sorted(scores, key=lambda path: (scores[path], path.name), reverse=True)
    within = [path for path in ranked if WITHIN_EPOCH in path.name]
    at_end = [path for path in ranked if WITHIN_EPOCH not in path.name]
    needed = {newest}
    if WITHIN_EPOCH in newest.name:
        needed.add(max(at_end, key=lambda path: path.name, default=newest))
    return [path for path in [*within, *at_end[keep:]] if path not in needed]


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """Directory name of a checkpoint; names sort by age.

    Args:
        epoch: epochs completed.
        step: steps completed, if the checkpoint is within an epoch.
    """
    return f"epoch_{epoch:04d}" + ("" if step is None else f"{WITHIN_EPOCH}{step:08d}")


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest intact checkpoint of a run; damaged ones are skipped with a warning."""
    return next(intact_checkpoints(run_dir), None)


def intact_checkpoints(run_dir: Path) -> Iterator[Path]:
    """The intact checkpoints of a run, newest first; damaged ones are skipped with a warning."""
    for path in sorted(run_dir.glob("checkpoints/epoch_*"), reverse=True):
        try:
            verify_checkpoint(path)
        except OtherFormatError:  # it is intact: restarting without it would lose it
            raise
        except CheckpointError as error:
            logger.warning("skipping a damaged checkpoint: %s", error)
        else:
            yield path
