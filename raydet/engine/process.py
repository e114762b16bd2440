"""What one process of a run does, from files to results. Knows neither Ray nor MLflow.

Call it under plain `python`, under `torchrun`, or from a Ray Train worker.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision

import raydet
from raydet.checkpoint.load import load_carry, load_checkpoint
from raydet.checkpoint.writer import CheckpointWriter, agreed_checkpoint
from raydet.config import Experiment, TrainConfig
from raydet.cpu import cpu_name
from raydet.data.build import data_hashes, ignored_in, notes_on, open_source
from raydet.data.loader import TrainLoader
from raydet.data.sampler import batch_plan
from raydet.data.sources.base import Source
from raydet.data.split import split_indices
from raydet.engine.barriers import yielding_busy_cores
from raydet.engine.evaluator import Evaluator
from raydet.engine.loop import Services, fit
from raydet.engine.optim import build_optimizer
from raydet.engine.peak_memory import watch_peak_memory
from raydet.engine.pretrained import start_from_pretrained
from raydet.engine.state import TrainState
from raydet.engine.worst_case import dry_run_if_long
from raydet.errors import ConfigError
from raydet.metrics.names import deciding_metric
from raydet.models.build import build_model, modalities_read, parameter_counts
from raydet.models.model import Model
from raydet.parallel.collectives import World, average_statistics, largest_over_ranks, smallest_over_ranks
from raydet.parallel.determinism import deterministic_kernels
from raydet.parallel.parallelize import layout_of_run, parallelize, unwrapped
from raydet.parallel.precision import check_precision
from raydet.plan.flops import forward_flops
from raydet.resilience.current_phase import enter
from raydet.resilience.fault_injection import watch_for_faults
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.heartbeat import Heartbeat
from raydet.resilience.out_of_memory import during, naming_remedies, planned_micro_batch
from raydet.resilience.step_control import Control, StopRequest
from raydet.runs.results import EpochRow, RunResults
from raydet.runs.run_dir import ModelInfo, RunRecord, last_progress, recorded_model_info
from raydet.tasks.base import Task
from raydet.tasks.build import build_task

logger = logging.getLogger("raydet")


def run_process(
    experiment: Experiment,
    *,
    run_dir: Path,
    world: World,
    task: Task | None = None,
    publish: Callable[[EpochRow], None] = lambda row: None,
    fault_tolerance: FaultTolerance = FaultTolerance(),  # noqa: B008  -- frozen
    stop: StopRequest | None = None,
    ask_cluster: Callable[[], str | None] = lambda: None,
    attempt: int = 0,
) -> RunResults:
    """Train, evaluate and record one run, as rank `world.rank` of its workers; resumes from its newest checkpoint.

    Args:
        run_dir: see `raydet.runs.run_dir`; must exist, common to all ranks.
        task: the code of a custom task; default: the task that the experiment names.
        publish: called on every rank after every epoch.
        fault_tolerance: how often to save within an epoch.
        stop: asks, from another thread or a signal handler, to save and stop.
        ask_cluster: see `raydet.resilience.step_control.Control`.
        attempt: how often the driver has started the run before.

    Returns:
        The results: metrics are the same on every rank, times are each rank's own.

    Raises:
        DataError: the data are bad.
        ConfigError: the batch does not divide, or the like.
        CheckpointError: a checkpoint cannot be written, or belongs to another model.
        OutOfMemoryError: a worker has no memory left.
        PreemptedError, HostMemoryError: the run was asked to stop, and has saved.
        TrainingError: the loss is not finite.
    """
    watch_for_faults(world, run_dir)
    peak_memory = watch_peak_memory(world.device)
    started, last_active = time.time(), last_progress(run_dir)
    check_precision(experiment.train, world.device)
    _check_nodes(experiment, world)
    task = task or build_task(experiment)
    source = open_source(experiment.data)
    parts = split_indices(source, experiment.data.split)
    train_indices, val_indices = parts["train"], parts["val"]
    task.check_training_images(source, train_indices)
    with (
        closing(RunRecord(run_dir, enabled=world.is_main)) as record,
        deterministic_kernels(world.device, exact=experiment.train.exact),
        yielding_busy_cores(torch.get_num_threads(), world.device),
    ):
        loader = _train_loader(experiment, task, source, train_indices, run_dir, world)
        with naming_remedies(experiment, world, micro_batch=loader.micro_batch):
            with during("setup", (), world.device):
                state, pretrained = _initial_state(experiment, task, run_dir, world)
                state.is_restarted = attempt > 0 or state.step > 0
                state.away_s = 0.0 if attempt else max(0.0, started - max(state.saved_at, last_active))
            info = _model_info(experiment, task, state, loader, len(train_indices), len(val_indices), world)
            info["pretrained"], info["data"] = pretrained, data_hashes(source)
            info["ignored_objects"] = ignored_in(source)
            if world.is_main and state.step:
                _warn_of_other_rounding(recorded_model_info(run_dir), info)
            record.model_info(info)
            if world.is_main:
                logger.info("%s: %s", experiment.name, info)
                for note in notes_on(source):
                    logger.info("%s: %s", experiment.name, note)
            dry_run_if_long(experiment, task, state, source, train_indices, loader, world)
            final = task.final_evaluation(experiment, source, parts)
            evaluator = Evaluator(task, experiment, source, val_indices, world, final=final)
            stop = stop or StopRequest()
            control = Control(world, run_dir, fault_tolerance, stop, ask_cluster)
            keep = experiment.train.keep_checkpoints
            with (
                Heartbeat(run_dir, world, fault_tolerance, stop),
                CheckpointWriter(run_dir / "checkpoints", keep=keep, world=world) as writer,
            ):
                fit(
                    state,
                    loader,
                    experiment=experiment,
                    world=world,
                    record=record,
                    control=control,
                    services=Services(
                        validate=lambda: evaluator(state),
                        save=lambda row: _save(state, row, experiment, world, writer),
                        restore=lambda: _restore(state, run_dir, world, writer),
                        publish=publish,
                    ),
                )
                if evaluator.scores is None:  # the run was lost between its last epoch and its results
                    evaluator(state)
        assert evaluator.scores is not None
        record.records(evaluator.scores.records)
        if evaluator.final_scores is not None:
            record.records(evaluator.final_scores.records, is_final=True)
        peak = largest_over_ranks(peak_memory() or 0, world) or None
        results = _results(experiment, task, state, info, peak)
        record.results(results)
    return results


def _train_loader(
    experiment: Experiment, task: Task, source: Source, indices: Sequence[int], run_dir: Path, world: World
) -> TrainLoader:
    train = experiment.train
    earlier = None if isinstance(train.micro_batch, int) else _earlier_micro_batch(run_dir, train, world)
    micro_batch = earlier or train.micro_batch
    if micro_batch == "auto":
        most = max(task.cost(source, index) for index in indices)
        micro_batch = planned_micro_batch(experiment, world, num_objects=most)
    micro_batch, accumulation = batch_plan(train.global_batch, world.world_size, micro_batch)
    return TrainLoader(
        source,
        indices,
        data=experiment.data,
        seed=experiment.seed,
        global_batch=train.global_batch,
        micro_batch=micro_batch,
        accumulation=accumulation,
        rank=world.rank,
        world_size=world.world_size,
        steps_per_epoch=train.steps_per_epoch,
        reads=modalities_read(experiment.model),
    )


def _check_nodes(experiment: Experiment, world: World) -> None:
    """Every rank must come to the same groups of workers."""
    train, share = experiment.train, world.ranks_per_node or 0
    if train.strategy != "hsdp" or train.shard_ranks is not None:
        return
    fewest, most = smallest_over_ranks(share, world), largest_over_ranks(share, world)
    if fewest != most:
        raise ConfigError(
            f"train.strategy=hsdp: nodes hold {fewest} to {most} workers each; set train.shard_ranks to say how many "
            "share one copy of the model"
        )


def _initial_state(
    experiment: Experiment, task: Task, run_dir: Path, world: World
) -> tuple[TrainState, Mapping[str, object] | None]:
    """The state of the newest checkpoint, or of the start; and what model_info.json says of pretrained weights."""
    checkpoint = agreed_checkpoint(run_dir, world)
    bare = initial_model(experiment, task, world)
    pretrained = start_from_pretrained(
        bare, experiment, world, run_dir=run_dir, is_resumed=checkpoint is not None
    )
    model = parallelize(bare, world, units=bare.units(), train=experiment.train)
    state = TrainState(model=model, optimizer=build_optimizer(experiment.optim, bare.parameters()))
    if checkpoint is None:
        logger.info("starting at step 0")
    else:
        _load(checkpoint, state, world)
    return state, pretrained


def initial_model(experiment: Experiment, task: Task, world: World) -> Model:
    """With weights on rank 0 only, the same at every number of workers: the others receive theirs."""
    torch.manual_seed(experiment.seed)
    with nullcontext() if world.is_main else torch.device("meta"):
        return build_model(experiment, task.build_head)


def _restore(state: TrainState, run_dir: Path, world: World, writer: CheckpointWriter) -> bool:
    """Go back to the newest checkpoint; False if there is none."""
    writer.wait()
    checkpoint = agreed_checkpoint(run_dir, world)
    if checkpoint is not None:
        _load(checkpoint, state, world)
    return checkpoint is not None


def _load(checkpoint: Path, state: TrainState, world: World) -> None:
    model = unwrapped(state.model)
    state.take(
        load_checkpoint(checkpoint, model=model, optimizer=state.optimizer, world=world, is_verified=True)
    )
    state.carry = load_carry(checkpoint, world)
    if world.is_main:
        logger.info("continuing after step %d, in epoch %d, from %s", state.step, state.epoch + 1, checkpoint)


def _earlier_micro_batch(run_dir: Path, train: TrainConfig, world: World) -> int | None:
    """What an interrupted attempt of this run has used: batch norms shall keep seeing as many images."""
    earlier = recorded_model_info(run_dir).get("micro_batch", 0) if world.is_main else sys.maxsize
    earlier = smallest_over_ranks(earlier, world)
    if earlier and train.global_batch % (world.world_size * earlier):
        logger.warning(
            "%d workers cannot continue with micro-batches of %d; batch norms will see another number of images",
            world.world_size,
            earlier,
        )
        return None
    return earlier or None


def _warn_of_other_rounding(earlier: Mapping[str, object], info: Mapping[str, object]) -> None:
    """Whatever changes the order of a sum, or how it is computed, changes the last bits of a run that resumes."""
    names = ("device", "cpu", "threads", "torch") if info["device"] == "cpu" else ("device", "torch")
    changed = [
        f"{name} {earlier[name]} before, {info[name]} now"
        for name in names
        if name in earlier and earlier[name] != info[name]
    ]
    if changed:
        logger.warning(
            "losses will agree with those of an uninterrupted run up to rounding only: %s", "; ".join(changed)
        )


def _save(
    state: TrainState, row: EpochRow | None, experiment: Experiment, world: World, writer: CheckpointWriter
) -> None:
    """Save after an epoch, or within one (`row` is None)."""
    enter("save-copy")
    metric = deciding_metric(experiment.task)
    is_evaluated = row is not None and bool(row.metrics)
    if not is_evaluated:  # otherwise the evaluation has done it
        average_statistics(state.model, world)
    state.settle(world)
    state.checkpoint_s += writer.save(
        state.epoch,
        step=state.step if state.epoch_step else None,
        model=state.model,
        optimizer=state.optimizer,
        state=state.as_json(),
        score=metric.utility(row[metric.name]) if row is not None and is_evaluated else None,
        carry=state.carry,
    )


def _model_info(
    experiment: Experiment,
    task: Task,
    state: TrainState,
    loader: TrainLoader,
    num_train: int,
    num_val: int,
    world: World,
) -> ModelInfo:
    return ModelInfo(
        parameters=parameter_counts(unwrapped(state.model)),
        gflops={part: flops / 1e9 for part, flops in forward_flops(experiment, task.build_head).items()},
        layout=asdict(layout_of_run(experiment.train, world)),
        train_images=num_train,
        val_images=num_val,
        simulated=list(experiment.data.simulated),
        steps_per_epoch=loader.steps_per_epoch,
        global_batch=experiment.train.global_batch,
        micro_batch=loader.micro_batch,
        accumulation=loader.accumulation,
        workers=world.world_size,
        device=str(world.device),
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        raydet=raydet.__version__,
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        python=platform.python_version(),
    )


def _results(
    experiment: Experiment, task: Task, state: TrainState, info: ModelInfo, peak_bytes: int | None
) -> RunResults:
    metric = deciding_metric(experiment.task)
    evaluated = [row for row in state.history if row.metrics]
    return RunResults(
        fingerprint=experiment.fingerprint(),
        final=evaluated[-1],
        best=max(evaluated, key=lambda row: metric.utility(row[metric.name])),
        task=task.results(experiment),
        history=tuple(state.history),
        parameters=info["parameters"]["total"],
        gflops=info["gflops"]["total"],
        data=info["data"],
        simulated=experiment.data.simulated,
        workers=info["workers"],
        loop_s=round(state.loop_s, 3),
        checkpoint_s=round(state.checkpoint_s, 3),
        lost_s=round(state.lost_s, 3),
        skipped_steps=tuple(state.skipped_steps),
        digest=state.digest,
        peak_memory_bytes=peak_bytes,
    )
