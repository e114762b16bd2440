"""The training loop, on one page: epochs of steps, an evaluation, a checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raydet.config import Experiment
from raydet.errors import PreemptedError, TrainingError
from raydet.parallel.collectives import World, broadcast_text, gather_rows, mean_over_ranks
from raydet.structures import Batch
from raydet.train.control import Control
from raydet.train.optim import learning_rate
from raydet.train.phases import HERE, enter
from raydet.train.record import RunRecord
from raydet.train.state import TrainState
from raydet.train.step import LOSS_NAMES, train_step

FLUSH_STEPS = 20
"""Steps between two looks at the losses: each look makes the host wait for the device once."""

logger = logging.getLogger("raydet")


class Loader(Protocol):
    """Micro-batches of this rank."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""

    @property
    def share(self) -> int:
        """Pictures of this rank per optimiser step."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """One list of micro-batches per optimiser step."""


def fit(
    state: TrainState,
    loader: Loader,
    *,
    experiment: Experiment,
    world: World,
    record: RunRecord,
    control: Control,
    validate: Callable[[], dict[str, Any]],
    save: Callable[[float | None], None],
    publish: Callable[[dict[str, Any]], None],
) -> None:
    """Train from where `state` stands to the last epoch.

    Args:
        validate: metrics of the model as it is; called on every rank, every `train.eval_every` epochs and at the end.
        save: stores a checkpoint of `state` with a score; called on every rank.
        publish: takes the row of a finished epoch; called on every rank.

    Raises:
        TrainingError: a loss is not finite.
        PreemptedError: the run was asked to stop; where it stands is saved.
    """
    config = experiment.train
    total_steps = config.epochs * loader.steps_per_epoch
    log = LossLog(state, record, world, config.epochs, total_steps, config.global_batch)
    while state.epoch < config.epochs:
        _train_epoch(state, loader, experiment, world, log, control, save)
        row = log.end_epoch()
        if state.epoch % config.eval_every == 0 or state.epoch == config.epochs:
            started = time.perf_counter()
            row |= validate()
            row["eval_s"] = round(time.perf_counter() - started, 3)
            state.loop_s += row["eval_s"]
        state.history.append(row)
        record.epochs(state.history)
        if world.is_main:
            logger.info("epoch %d of %d: %s", state.epoch, config.epochs, row)
        save(row.get("mAP"))
        control.saved()
        publish(row)


def _train_epoch(
    state: TrainState,
    loader: Loader,
    experiment: Experiment,
    world: World,
    log: LossLog,
    control: Control,
    save: Callable[[float | None], None],
) -> None:
    """The steps that are left of an epoch."""
    config, optim = experiment.train, experiment.optim
    state.model.train()
    log.start_epoch()
    batches = loader.epoch(state.epoch, state.epoch_step)
    while state.epoch_step < loader.steps_per_epoch:
        HERE.step = state.step
        enter("load")
        micro_batches = next(batches)
        lr = learning_rate(
            optim, step=state.step, steps_per_epoch=loader.steps_per_epoch, total_steps=log.total_steps
        )
        losses = train_step(
            state.model,
            micro_batches,
            state.optimizer,
            lr=lr,
            clip_norm=optim.clip_norm,
            seed=experiment.seed,
            step=state.step,
            world=world,
            precision=config.precision,
        )
        image_ids = [image for batch in micro_batches for image in batch.image_ids]
        first = state.epoch_step * config.global_batch + world.rank * loader.share
        state.advance(first, image_ids)
        log.add(state.step - 1, lr, losses, image_ids)
        verdict = control.after_step(state.step)
        if verdict.stop is None and (not verdict.save or state.epoch_step == loader.steps_per_epoch):
            continue
        log.settle()
        save(None)
        control.saved()
        if verdict.stop is not None:
            raise PreemptedError(
                f"stopped after step {state.step} of {log.total_steps} ({verdict.stop}); all of it is saved, the same "
                "command continues"
            )


@dataclass(slots=True)
class LossLog:
    """Keeps the losses on the device and looks at them now and then."""

    state: TrainState
    """Takes the sum of the epoch's losses, and the time."""
    record: RunRecord
    world: World
    epochs: int
    total_steps: int
    global_batch: int
    _since: float = 0.0
    _pending: list[tuple[int, float, Tensor, list[str]]] = field(default_factory=list)

    def start_epoch(self) -> None:
        """Begin, or go on with, the epoch at which the state stands."""
        self._since = time.perf_counter()

    def add(self, step: int, lr: float, losses: Tensor, image_ids: list[str]) -> None:
        """Note this rank's losses of one step."""
        self._pending.append((step, lr, losses, image_ids))
        # On a CPU the losses are there already: look at once, so that the progress bar moves.
        if losses.device.type == "cpu" or len(self._pending) == FLUSH_STEPS:
            self._flush()

    def settle(self) -> None:
        """Bring the state's sums up to its last step."""
        self._flush()
        now = time.perf_counter()
        self.state.epoch_s += now - self._since
        self._since = now

    def end_epoch(self) -> dict[str, Any]:
        """The epoch's row: mean loss, time and speed. The state goes on to the next epoch."""
        self.settle()
        state = self.state
        row = {
            "epoch": state.epoch + 1,
            "loss": state.epoch_loss / state.epoch_step,
            "train_s": round(state.epoch_s, 3),
            "images_per_s": round(state.epoch_step * self.global_batch / state.epoch_s, 3),
        }
        state.end_epoch()
        return row

    def _flush(self) -> None:
        if not self._pending:
            return
        mine = torch.stack([losses for _, _, losses, _ in self._pending])
        means = mean_over_ranks(mine, self.world)
        if not torch.isfinite(means).all():
            raise self._not_finite(mine)
        rows = []
        for (step, lr, _, _), values in zip(self._pending, means.tolist(), strict=True):
            loss = math.fsum(values)
            self.state.epoch_loss += loss
            named = dict(zip(LOSS_NAMES, values, strict=True))
            rows.append({"step": step, "epoch": self.state.epoch + 1, "lr": lr, "loss": loss} | named)
        self._pending.clear()
        self.record.batches(rows)
        self._progress(rows[-1])

    def _progress(self, row: dict[str, Any]) -> None:
        done, state = row["step"] + 1, self.state
        step_s = (state.epoch_s + time.perf_counter() - self._since) / state.epoch_step
        self.record.progress(
            {
                "epoch": row["epoch"],
                "epochs": self.epochs,
                "step": done,
                "total_steps": self.total_steps,
                "loss": row["loss"],
                "images_per_s": self.global_batch / step_s,
                "eta_s": step_s * (self.total_steps - done),
            },
            force=done == self.total_steps,
        )

    def _not_finite(self, mine: Tensor) -> TrainingError:
        """The error that every rank raises: the first culprit's, who alone knows the pictures."""
        is_finite = torch.isfinite(mine).all(dim=1)
        ranks = gather_rows(np.array([[float(is_finite.all())]]), self.world)[:, 0]
        text = "" if is_finite.all() else self._describe(int(is_finite.logical_not().nonzero()[0]))
        return TrainingError(broadcast_text(text, self.world, source=int(ranks.argmin())))

    def _describe(self, position: int) -> str:
        step, lr, losses, image_ids = self._pending[position]
        named = dict(zip(LOSS_NAMES, losses.tolist(), strict=True))
        return (
            f"rank {self.world.rank}: the loss is not finite at step {step} (epoch {self.state.epoch + 1}): {named}, "
            f"pictures {', '.join(image_ids)}; lower optim.lr (now {lr:g}), set optim.clip_norm, or check these "
            "pictures' boxes"
        )
