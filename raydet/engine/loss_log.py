"""The losses of a run: kept on the device, looked at now and then, written down, refused where they are not finite."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from raydet.engine.state import TrainState
from raydet.engine.step import images_of
from raydet.errors import NonFiniteLossError
from raydet.parallel.collectives import (
    World,
    broadcast_text,
    gather_rows,
    mean_over_ranks,
    smallest_over_ranks,
)
from raydet.runs.results import EpochRow
from raydet.runs.run_dir import Progress, RunRecord, write_atomically
from raydet.structures import Batch

KEPT = "non_finite_step_"
MAX_KEPT = 3
FLUSH_STEPS = 20
"""Steps between two looks at the losses: each look makes the host wait for the device once."""

Losses = Mapping[str, Tensor]
"""One number each, by name."""

logger = logging.getLogger("raydet")


class Loader(Protocol):
    """Micro-batches of this rank."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""

    def position(self, step: int) -> tuple[int, int]:
        """The pass through the data that a step belongs to, and where this rank's images begin in its order."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """One list of micro-batches per optimizer step."""


@dataclass(slots=True)
class LossLog:
    """Keeps the losses on the device and looks at them now and then."""

    state: TrainState
    """Takes the sum of the epoch's losses, and the time."""
    loader: Loader
    """Reads a batch again whose loss is not finite."""
    record: RunRecord
    world: World
    epochs: int
    total_steps: int
    global_batch: int
    _since: float = 0.0
    _pending: list[tuple[int, float, Losses]] = field(default_factory=list)
    first_bad_step: int = -1
    """The first step whose loss was not finite."""

    def start_epoch(self) -> None:
        """Begin, or continue, the epoch at which the state stands."""
        self._since = time.perf_counter()

    def add(
        self, step: int, lr: float, losses: Losses, micro_batches: Sequence[Batch], *, is_updated: bool = True
    ) -> None:
        """Note this rank's losses of one step; where there was no update, only say so."""
        if not is_updated:
            self.state.skipped_steps.append(step)
            text = self._not_finite(step, lr, losses, lambda: micro_batches)
            logger.warning("%s; the step is skipped", text)
            return
        self._pending.append((step, lr, losses))
        # On a CPU the losses are there already: look at once, so that the progress bar moves.
        if self.world.device.type == "cpu" or len(self._pending) == FLUSH_STEPS:
            self._flush()

    def settle(self) -> None:
        """Bring the state's sums up to its last step, and see that it can be saved.

        Raises:
            NonFiniteLossError: a loss was not finite, or a weight is not.
        """
        self._flush()
        local = [p.to_local() if isinstance(p, DTensor) else p for p in self.state.model.parameters()]
        is_finite = torch.stack([torch.isfinite(part).all() for part in local]).all()
        if not smallest_over_ranks(int(is_finite), self.world):  # waits for the device once
            self.first_bad_step = self.state.step - 1
            raise NonFiniteLossError(
                f"a weight is not finite after step {self.first_bad_step} (epoch {self.state.epoch + 1}), though the "
                "losses were; lower optim.lr or set optim.clip_norm"
            )
        now = time.perf_counter()
        self.state.epoch_s += now - self._since
        self._since = now

    def end_epoch(self) -> EpochRow:
        """The epoch's row: mean loss, time and speed. The state moves on to the next epoch."""
        self.settle()
        state = self.state
        num_trained = state.epoch_step - sum(
            step >= state.step - state.epoch_step for step in state.skipped_steps
        )
        row = EpochRow(
            epoch=state.epoch + 1,
            loss=state.epoch_loss / num_trained if num_trained else None,
            train_s=round(state.epoch_s, 3),
            images_per_s=round(state.epoch_step * self.global_batch / state.epoch_s, 3),
        )
        state.end_epoch()
        return row

    def _flush(self) -> None:
        if not self._pending:
            return
        names = tuple(self._pending[0][2])
        mine = torch.stack([stacked(losses) for _, _, losses in self._pending])
        means = mean_over_ranks(mine, self.world)
        is_finite = torch.isfinite(means).all(dim=1)
        if not is_finite.all():
            step, lr, losses = self._pending[int(is_finite.logical_not().nonzero()[0])]
            self.first_bad_step = step
            raise NonFiniteLossError(self._not_finite(step, lr, losses, lambda: self._batches_of(step)))
        rows = []
        for (step, lr, _), values in zip(self._pending, means.tolist(), strict=True):
            loss = math.fsum(values)
            self.state.epoch_loss += loss
            named = dict(zip(names, values, strict=True))
            rows.append({"step": step, "epoch": self.state.epoch + 1, "lr": lr, "loss": loss} | named)
        self._pending.clear()
        self.record.batches(rows)
        self._progress(step + 1, loss)

    def _progress(self, done: int, loss: float) -> None:
        """Write the progress after the step number `done`, from 1."""
        state = self.state
        step_s = (state.epoch_s + time.perf_counter() - self._since) / state.epoch_step
        progress = Progress(
            epoch=state.epoch + 1,
            epochs=self.epochs,
            step=done,
            total_steps=self.total_steps,
            loss=loss,
            images_per_s=self.global_batch / step_s,
            eta_s=step_s * (self.total_steps - done),
        )
        self.record.progress(progress, force=done == self.total_steps)

    def rewind(self) -> None:
        """The state went back to earlier steps."""
        self._pending.clear()
        self.record.rewind()

    def _not_finite(
        self, step: int, lr: float, losses: Losses, batches: Callable[[], Sequence[Batch]]
    ) -> str:
        """The same on every rank: what the first says whose own loss is not finite, who alone knows the images.

        It keeps them, as they were fed, for whoever wants to look.
        """
        is_mine = not bool(torch.isfinite(stacked(losses)).all())
        culprit = int(gather_rows(np.array([[0.0 if is_mine else 1.0]]), self.world)[:, 0].argmin())
        text = ""
        if culprit == self.world.rank:
            micro_batches = batches()
            text = self._describe(step, lr, losses, micro_batches)
            keep_batches(self.record.run_dir, step, micro_batches, text)
        return broadcast_text(text, self.world, source=culprit)

    def _describe(self, step: int, lr: float, losses: Losses, micro_batches: Sequence[Batch]) -> str:
        bad = [image for batch in micro_batches for image in batch.not_finite()]  # a pixel or a box is not
        named = {name: loss.item() for name, loss in losses.items()}
        subject = "gradient" if all(map(math.isfinite, named.values())) else "loss"
        where = f"step {step} (epoch {self.state.epoch + 1})"
        what = f"rank {self.world.rank}: the {subject} is not finite at {where}: {named}"
        if bad:
            return (
                f"{what}, because of {', '.join(bad)}: a pixel or a box is not finite; correct or remove them"
            )
        images = ", ".join(images_of(micro_batches))
        return (
            f"{what}, images {images}; their pixels and boxes are finite: lower optim.lr (now {lr:g}) or set "
            "optim.clip_norm"
        )

    def _batches_of(self, step: int) -> Sequence[Batch]:
        first_of_epoch = self.state.step - self.state.epoch_step
        return next(self.loader.epoch(self.state.epoch, step - first_of_epoch))


def stacked(losses: Losses) -> Tensor:
    """[number of losses], in their order."""
    return torch.stack(list(losses.values()))


def keep_batches(run_dir: Path, step: int, micro_batches: Sequence[Batch], what: str) -> None:
    """Write `non_finite_step_<step>.json` with the images' names, and `.safetensors` with what was fed to the model:
    the tensors of micro-batch i as `<i>.<name>`. For the first steps of a run only; where it fails, a warning is all:
    the other ranks wait.
    """
    if len(list(run_dir.glob(f"{KEPT}*.json"))) >= MAX_KEPT:
        return
    stem = run_dir / f"{KEPT}{step:08d}"
    tensors = {
        f"{i}.{name}": x for i, batch in enumerate(micro_batches) for name, x in batch.tensors().items()
    }
    content = {"step": step, "what": what, "image_ids": [list(batch.image_ids) for batch in micro_batches]}
    try:
        save_file(tensors, stem.with_suffix(".safetensors"))
        write_atomically(stem.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        logger.warning("cannot keep the images of step %d: %s", step, error)
