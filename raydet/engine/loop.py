"""The training loop, on one page: epochs of steps, an evaluation, a checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from raydet.config import Experiment
from raydet.data.digest import sample_names
from raydet.engine.averaging import update_average
from raydet.engine.loss_log import Loader, LossLog
from raydet.engine.optim import learning_rate
from raydet.engine.state import TrainState
from raydet.engine.step import train_step
from raydet.errors import NonFiniteLossError
from raydet.metrics.names import deciding_metric
from raydet.parallel.collectives import World
from raydet.parallel.parallelize import unwrapped
from raydet.resilience.current_phase import CURRENT, enter
from raydet.resilience.step_control import Control
from raydet.runs.results import EpochRow, Number
from raydet.runs.run_dir import RunRecord
from raydet.structures import Batch

MAX_ROLLBACKS = 3
"""Returns to a checkpoint in one process: a run that diverges again and again is to be looked at."""

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class Services:
    """What others do for the loop; all of it is called on every rank."""

    validate: Callable[[], Mapping[str, Number]]
    """Metrics of the current model; every `train.eval_every` epochs and at the end."""
    save: Callable[[EpochRow | None], None]
    """Stores a checkpoint of the state: with the row of the epoch at its end, with None within it."""
    restore: Callable[[], bool]
    """Brings the state back to the newest checkpoint, if there is one."""
    publish: Callable[[EpochRow], None]
    """Takes the row of a completed epoch."""


def fit(
    state: TrainState,
    loader: Loader,
    *,
    experiment: Experiment,
    world: World,
    record: RunRecord,
    control: Control,
    services: Services,
) -> None:
    """Train from `state` to the last epoch.

    Raises:
        NonFiniteLossError: a loss is not finite.
        RaydetError: the run was asked to stop, see `raydet.resilience.step_control`; its state is saved.
    """
    config = experiment.train
    total_steps = config.epochs * loader.steps_per_epoch
    log = LossLog(state, loader, record, world, config.epochs, total_steps, config.global_batch)
    num_rollbacks = 0
    while state.epoch < config.epochs:
        try:
            _train_epoch(state, loader, experiment, world, log, control, services)
            row = log.end_epoch()
        except NonFiniteLossError as error:
            skipped = [*state.skipped_steps, log.first_bad_step]
            if config.non_finite != "rollback" or num_rollbacks == MAX_ROLLBACKS or not services.restore():
                raise
            num_rollbacks += 1
            log.rewind()
            state.skipped_steps = skipped
            logger.warning("%s; back to step %d, step %d is skipped", error, state.step, skipped[-1])
            continue
        if state.epoch % config.eval_every == 0 or state.epoch == config.epochs:
            started = time.perf_counter()
            metrics = services.validate()
            eval_s = round(time.perf_counter() - started, 3)
            row = replace(row, metrics=metrics, eval_s=eval_s)
            state.loop_s += eval_s
        state.history.append(row)
        record.epochs(state.history)
        if world.is_main:
            logger.info("epoch %d of %d: %s", state.epoch, config.epochs, row.as_json())
        services.save(row)
        control.saved()
        services.publish(row)


def _train_epoch(
    state: TrainState,
    loader: Loader,
    experiment: Experiment,
    world: World,
    log: LossLog,
    control: Control,
    services: Services,
) -> None:
    """The steps that are left of an epoch."""
    config, optim = experiment.train, experiment.optim
    state.model.train()
    CURRENT.step = state.step
    log.start_epoch()
    metric = deciding_metric(experiment.task)
    utilities = [metric.utility(row[metric.name]) for row in state.history if row.metrics]
    batches = loader.epoch(state.epoch, state.epoch_step)
    while state.epoch_step < loader.steps_per_epoch:
        enter("load")
        micro_batches = next(batches)
        if state.step in state.skipped_steps:
            _advance(state, loader, micro_batches)
            continue
        lr = learning_rate(
            optim,
            step=state.step,
            steps_per_epoch=loader.steps_per_epoch,
            total_steps=log.total_steps,
            utilities=utilities,
        )
        unwrapped(state.model).set_progress(state.step / log.total_steps)  # type: ignore[operator]
        losses, is_updated, state.carry = train_step(
            state.model,
            micro_batches,
            state.optimizer,
            lr=lr,
            clip_norm=optim.clip_norm,
            clip_value=optim.clip_value,
            seed=experiment.seed,
            step=state.step,
            world=world,
            precision=config.precision,
            carry=state.carry,
            skip_non_finite=config.non_finite == "skip",
        )
        if is_updated and optim.ema_decay is not None:
            update_average(state.optimizer, decay=optim.ema_decay, step=state.step)
        _advance(state, loader, micro_batches)
        log.add(state.step - 1, lr, losses, micro_batches, is_updated=is_updated)
        verdict = control.after_step(state.step)
        if verdict.stop is None and (not verdict.save or state.epoch_step == loader.steps_per_epoch):
            continue
        log.settle()
        services.save(None)
        control.saved()
        if verdict.stop is not None:
            raise verdict.stop.as_error(
                f"stopped after step {state.step} of {log.total_steps} ({verdict.stop.reason}); all of it is saved, "
                "the same command continues"
            )


def _advance(state: TrainState, loader: Loader, micro_batches: Sequence[Batch]) -> None:
    samples = [name for batch in micro_batches for name in sample_names(batch.image_ids, batch.clip_frames)]
    state.advance(*loader.position(state.step), samples)
    CURRENT.step = state.step
    enter("between")
