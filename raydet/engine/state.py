"""What a run has reached."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from raydet.data.digest import EMPTY, Lanes, as_lanes, as_text, digest_of
from raydet.parallel.collectives import World, sum_over_ranks
from raydet.runs.results import EpochRow
from raydet.structures import Carry

_SAVED = (
    "epoch",
    "step",
    "epoch_step",
    "epoch_loss",
    "epoch_s",
    "skipped_steps",
    "digest",
    "history",
    "loop_s",
    "lost_s",
    "saved_at",
)


@dataclass(slots=True)
class TrainState:
    """Everything that a checkpoint brings back, and nothing else."""

    model: nn.Module
    """Wrapped for several workers where there are several."""
    optimizer: torch.optim.Optimizer
    carry: Carry = field(default_factory=dict)
    """What the model remembers of this rank's lanes."""
    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Optimizer steps completed."""
    epoch_step: int = 0
    """Of these, steps of the epoch that is under way: with the seed, all that the sampler needs."""
    epoch_loss: float = 0.0
    """Sum of their losses."""
    epoch_s: float = 0.0
    """Seconds in them."""
    skipped_steps: list[int] = field(default_factory=list)
    """Steps of the run whose gradient was not finite and was not used."""
    digest: str = EMPTY
    """See `raydet.data.digest`: what has been trained on, on all ranks, as of `settle`."""
    history: list[EpochRow] = field(default_factory=list)
    """Completed epochs."""
    loop_s: float = 0.0
    """Seconds in completed epochs, interrupted attempts included."""
    checkpoint_s: float = 0.0
    """Seconds that epochs waited for checkpoints, in this process; the last write, after the last epoch, left out."""
    lost_s: float = 0.0
    """Seconds from the checkpoint that a restart went on from to its first new step: lost work, and the start."""
    saved_at: float = field(default_factory=time.time)
    """Unix time of the newest checkpoint, or of the beginning."""
    is_restarted: bool = False
    """No step has been done yet since the run went on from a checkpoint."""
    away_s: float = 0.0
    """Of the time since that checkpoint, what passed before somebody gave the command again."""
    _unsettled: Lanes = field(default_factory=lambda: as_lanes(EMPTY))
    """This rank's part of the digest since then."""

    def advance(self, pass_: int, first: int, samples: Sequence[str]) -> None:
        """Count a step that is done, and add this rank's samples to the digest, from position `first` of the pass."""
        self._unsettled = self._unsettled + digest_of(pass_, first, samples)
        if self.is_restarted:
            self.is_restarted = False
            self.lost_s += max(0.0, time.time() - self.saved_at - self.away_s)
        self.step += 1
        self.epoch_step += 1

    def end_epoch(self) -> None:
        """All steps of the epoch are done."""
        self.loop_s += self.epoch_s
        self.epoch += 1
        self.epoch_step, self.epoch_loss, self.epoch_s = 0, 0.0, 0.0

    def settle(self, world: World) -> None:
        """Get ready to be saved: add up the digest; to be called on every rank."""
        self.saved_at = time.time()
        self.digest = as_text(as_lanes(self.digest) + sum_over_ranks(self._unsettled, world))
        self._unsettled = as_lanes(EMPTY)

    def as_json(self) -> Mapping[str, object]:
        """The part that is not a tensor."""
        tree = {name: getattr(self, name) for name in _SAVED}
        return tree | {"history": [row.as_json() for row in self.history]}

    def take(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `as_json` gave."""
        for name in _SAVED:
            setattr(self, name, saved[name])
        self.history = [EpochRow.parse(row) for row in saved["history"]]
        self._unsettled = as_lanes(EMPTY)
