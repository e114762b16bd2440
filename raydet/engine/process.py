"""What one process of a run does, from files to results. Knows neither Ray nor MLflow.

Call it under plain `python`, under `torchrun`, or from a Ray Train worker.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision

import raydet
from raydet.checkpoint.load import load_checkpoint
from raydet.checkpoint.writer import CheckpointWriter, agreed_checkpoint
from raydet.config import Experiment, TrainConfig
from raydet.cpu import cpu_name
from raydet.data.build import data_hashes, open_source
from raydet.data.loader import EvalLoader, TrainLoader
from raydet.data.sampler import batch_plan
from raydet.data.sources.base import Source
from raydet.data.split import groups_of, split_indices
from raydet.engine.averaging import averaged_weights
from raydet.engine.barriers import yielding_busy_cores
from raydet.engine.detect import detect, ground_truth, mean_loss
from raydet.engine.loop import Services, fit
from raydet.engine.optim import build_optimizer
from raydet.engine.peak_memory import watch_peak_memory
from raydet.engine.pretrained import KEY as PRETRAINED
from raydet.engine.pretrained import start_from_published
from raydet.engine.state import TrainState
from raydet.engine.system_metrics import system_metrics
from raydet.engine.worst_case import LONG_RUN_STEPS, rehearse, worst_batch
from raydet.errors import ConfigError
from raydet.metrics.coco import CocoResult
from raydet.metrics.matches import MatchRecords
from raydet.metrics.measure import measure
from raydet.metrics.sizes import SizeBins
from raydet.models.build import build_detector, modalities_read, parameter_counts
from raydet.models.detector import Detector
from raydet.models.units import units_of
from raydet.parallel.collectives import World, average_statistics, gather_rows, smallest_over_ranks
from raydet.parallel.determinism import deterministic_kernels
from raydet.parallel.parallelize import layout_of_run, parallelize, unwrapped
from raydet.parallel.precision import check_precision
from raydet.plan.counts import state_copies
from raydet.plan.flops import forward_flops
from raydet.resilience.current_phase import enter
from raydet.resilience.fault_injection import arm
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.heartbeat import Heartbeat
from raydet.resilience.out_of_memory import during, naming_remedies, planned_micro_batch
from raydet.resilience.step_control import Control, StopRequest
from raydet.runs.run_dir import RunRecord, last_progress, recorded_model_info
from raydet.structures import Batch

Publish = Callable[[dict[str, Any]], None]
"""Takes the row of a finished epoch."""

logger = logging.getLogger("raydet")


def run_process(
    experiment: Experiment,
    *,
    run_dir: Path,
    world: World,
    publish: Publish | None = None,
    fault_tolerance: FaultTolerance = FaultTolerance(),  # noqa: B008  -- frozen
    stop: StopRequest | None = None,
    ask_cluster: Callable[[], str | None] = lambda: None,
    attempt: int = 0,
) -> dict[str, Any]:
    """Train, evaluate and record one run, as rank `world.rank` of its workers; go on from its newest checkpoint.

    Args:
        run_dir: see `raydet.runs.run_dir`; must exist, common to all ranks.
        publish: called on every rank after every epoch.
        fault_tolerance: how often to save within an epoch.
        stop: asks, from another thread or a signal handler, to save and stop.
        ask_cluster: see `raydet.resilience.step_control.Control`.
        attempt: how often the driver has started the run before this.

    Returns:
        The results (plain JSON): the metrics are the same on every rank, times are each rank's own.

    Raises:
        DataError: the data are bad.
        ConfigError: the batch does not divide, or the like.
        CheckpointError: a checkpoint cannot be written, or belongs to another model.
        OutOfMemoryError: a worker has no memory left.
        PreemptedError, HostMemoryError: the run was asked to stop, and has saved.
        TrainingError: the loss is not finite.
    """
    arm(world, run_dir)
    peak_memory = watch_peak_memory(world.device)
    started, left = time.time(), last_progress(run_dir)
    check_precision(experiment.train, world.device)
    _check_nodes(experiment, world)
    source = open_source(experiment.data)
    train_indices, val_indices = split_indices(source, experiment.data.split)
    with (
        closing(RunRecord(run_dir, enabled=world.is_main)) as record,
        deterministic_kernels(world.device, exact=experiment.train.exact),
        yielding_busy_cores(torch.get_num_threads(), world.device),
    ):
        loader = _train_loader(experiment, source, train_indices, run_dir, world)
        with naming_remedies(experiment, world, micro_batch=loader.micro_batch):
            with during("setup", (), world.device):
                state, pretrained = _initial_state(experiment, run_dir, world)
                state.is_restarted = attempt > 0 or state.step > 0
                state.away_s = 0.0 if attempt else max(0.0, started - max(state.saved_at, left))
            info = _model_info(experiment, state, loader, len(train_indices), len(val_indices), world)
            info[PRETRAINED] = pretrained
            info["data"] = data_hashes(source)
            if world.is_main and state.step:
                _warn_of_other_rounding(recorded_model_info(run_dir), info)
            record.model_info(info)
            if world.is_main:
                logger.info("%s: %s", experiment.name, info)
            _rehearse_long_run(experiment, state, source, train_indices, loader, world)
            evaluator = Evaluator(experiment, source, val_indices, world)
            stop = stop or StopRequest()
            control = Control(world, run_dir, fault_tolerance, stop, ask_cluster)
            with (
                Heartbeat(run_dir, world, fault_tolerance, stop),
                _checkpoint_writer(experiment, run_dir, world) as writer,
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
                        save=lambda score: _save(state, score, world, writer),
                        restore=lambda: _restore(state, run_dir, world, writer),
                        publish=publish or (lambda row: None),
                    ),
                )
                if (
                    evaluator.records is None
                ):  # it was lost after its last epoch, before its end was written down
                    evaluator(state)
        assert evaluator.records is not None
        record.matches(evaluator.records)
        results = _results(experiment, state, info) | {
            "peak_memory_bytes": -smallest_over_ranks(-(peak_memory() or 0), world) or None
        }
        record.results(results)
    return results


class Evaluator:
    """Metrics of the model on the validation images, shared out over the workers."""

    def __init__(self, experiment: Experiment, source: Source, indices: list[int], world: World) -> None:
        self.loader = EvalLoader(
            source,
            indices,
            data=experiment.data,
            batch_size=experiment.train.eval_batch,
            rank=world.rank,
            world_size=world.world_size,
            in_step=layout_of_run(experiment.train, world).is_sharded,
        )
        self.truth = ground_truth(source.targets(index) for index in indices)
        self.config = experiment.evaluate
        self.classes = experiment.data.classes
        self.image_ids = [source.image_ids[index] for index in indices]
        groups = groups_of(source.group_ids, experiment.data.split)
        self.group_ids = [groups[index] for index in indices]
        self.world = world
        self.records: MatchRecords | None = None
        """Of the newest evaluation."""
        self.loss: float | None = None
        """Likewise: as in training, on images as they are."""

    def __call__(self, state: TrainState) -> dict[str, Any]:
        """`val_loss`, the 12 metrics, LAMR if wanted, AP per class as `AP/<class>`, and the load of the machine."""
        with during("evaluate", (), self.world.device), averaged_weights(state.optimizer):
            result = self.evaluate(unwrapped(state.model))
        per_class = {f"AP/{name}": value for name, value in result.per_class_ap.items()}
        return {"val_loss": self.loss, **result.metrics, **per_class, **system_metrics(self.world.device)}

    def _batches(self) -> Iterator[tuple[Batch, list[int]]]:
        for batch, positions in self.loader:
            enter("evaluate", batch.image_ids)  # progress: a long evaluation is no stall
            yield batch, positions

    def evaluate(self, detector: torch.nn.Module) -> CocoResult:
        """The same on every rank, whatever their number."""
        average_statistics(detector, self.world)
        rows, losses = detect(detector, self._batches(), device=self.world.device)
        self.loss = mean_loss(gather_rows(losses, self.world))
        result, self.records = measure(
            self.config,
            self.truth,
            gather_rows(rows, self.world),
            self.classes,
            image_ids=self.image_ids,
            group_ids=self.group_ids,
        )
        return result


def _train_loader(
    experiment: Experiment, source: Source, indices: list[int], run_dir: Path, world: World
) -> TrainLoader:
    train = experiment.train
    earlier = None if isinstance(train.micro_batch, int) else _earlier_micro_batch(run_dir, train, world)
    asked_for = earlier or train.micro_batch
    if asked_for == "auto":
        num_objects = max(len(source.targets(index)[1]) for index in indices)
        asked_for = planned_micro_batch(experiment, world, num_objects=num_objects)
    micro_batch, accumulation = batch_plan(train.global_batch, world.world_size, asked_for)
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
        reads=modalities_read(experiment.model),
    )


def _check_nodes(experiment: Experiment, world: World) -> None:
    """Every rank must come to the same groups of workers."""
    train, share = experiment.train, world.ranks_per_node or 0
    if train.strategy != "hsdp" or train.shard_ranks is not None:
        return
    fewest, most = smallest_over_ranks(share, world), -smallest_over_ranks(-share, world)
    if fewest != most:
        raise ConfigError(
            f"train.strategy=hsdp: nodes hold {fewest} to {most} workers each; set train.shard_ranks to say how many "
            "share one copy of the model"
        )


def _initial_state(
    experiment: Experiment, run_dir: Path, world: World
) -> tuple[TrainState, dict[str, Any] | None]:
    """Where the newest checkpoint stands, or the beginning; and about published weights, for model_info.json."""
    checkpoint = agreed_checkpoint(run_dir, world)
    detector = _initial_detector(experiment, world)
    pretrained = start_from_published(
        detector, experiment, world, run_dir=run_dir, is_resumed=checkpoint is not None
    )
    model = parallelize(detector, world, units=units_of(detector), train=experiment.train)
    state = TrainState(model=model, optimizer=build_optimizer(experiment.optim, detector.parameters()))
    if checkpoint is None:
        logger.info("starting at step 0")
    else:
        _take(checkpoint, state, world)
    return state, pretrained


def _restore(state: TrainState, run_dir: Path, world: World, writer: CheckpointWriter) -> bool:
    """Go back to the newest checkpoint; False where there is none."""
    writer.wait()
    checkpoint = agreed_checkpoint(run_dir, world)
    if checkpoint is None:
        return False
    _take(checkpoint, state, world)
    return True


def _take(checkpoint: Path, state: TrainState, world: World) -> None:
    saved = load_checkpoint(
        checkpoint,
        model=unwrapped(state.model),
        optimizer=state.optimizer,
        world=world,
        is_verified=True,
    )
    state.take(saved)
    if world.is_main:
        logger.info("continuing after step %d, in epoch %d, from %s", state.step, state.epoch + 1, checkpoint)


def _initial_detector(experiment: Experiment, world: World) -> Detector:
    """With weights on rank 0 only, the same at every number of workers: the others receive theirs."""
    torch.manual_seed(experiment.seed)
    with nullcontext() if world.is_main else torch.device("meta"):
        return build_detector(experiment)


def _checkpoint_writer(experiment: Experiment, run_dir: Path, world: World) -> CheckpointWriter:
    return CheckpointWriter(run_dir / "checkpoints", keep=experiment.train.keep_checkpoints, world=world)


def _rehearse_long_run(
    experiment: Experiment,
    state: TrainState,
    source: Source,
    train_indices: list[int],
    loader: TrainLoader,
    world: World,
) -> None:
    if experiment.train.epochs * loader.steps_per_epoch < LONG_RUN_STEPS:
        return
    rehearse(
        state.model,
        state.optimizer,
        worst_batch(source, train_indices, experiment.data, size=loader.micro_batch),
        state_copies=state_copies(experiment.optim),
        accumulation=loader.accumulation,
        world=world,
        precision=experiment.train.precision,
    )


def _earlier_micro_batch(run_dir: Path, train: TrainConfig, world: World) -> int | None:
    """What an interrupted attempt of this run has used: batch norms shall go on seeing as many images."""
    earlier = recorded_model_info(run_dir).get("micro_batch", 0) if world.is_main else sys.maxsize
    earlier = smallest_over_ranks(earlier, world)
    if earlier and train.global_batch % (world.world_size * earlier):
        logger.warning(
            "%d workers cannot go on with micro-batches of %d; batch norms will see another number of images",
            world.world_size,
            earlier,
        )
        return None
    return earlier or None


def _warn_of_other_rounding(earlier: dict[str, Any], info: dict[str, Any]) -> None:
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


def _save(state: TrainState, score: float | None, world: World, writer: CheckpointWriter) -> None:
    enter("save-copy")
    if score is None:  # else the evaluation has done it
        average_statistics(state.model, world)
    state.settle(world)
    state.checkpoint_s += writer.save(
        state.epoch,
        step=state.step if state.epoch_step else None,
        model=state.model,
        optimizer=state.optimizer,
        state=state.as_json(),
        score=score,
    )


def _model_info(
    experiment: Experiment, state: TrainState, loader: TrainLoader, num_train: int, num_val: int, world: World
) -> dict[str, Any]:
    return {
        "parameters": parameter_counts(unwrapped(state.model)),
        "gflops": {part: flops / 1e9 for part, flops in forward_flops(experiment).items()},
        "layout": asdict(layout_of_run(experiment.train, world)),
        "train_images": num_train,
        "val_images": num_val,
        "simulated": list(experiment.data.simulated),
        "steps_per_epoch": loader.steps_per_epoch,
        "global_batch": experiment.train.global_batch,
        "micro_batch": loader.micro_batch,
        "accumulation": loader.accumulation,
        "workers": world.world_size,
        "device": str(world.device),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "raydet": raydet.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def _results(experiment: Experiment, state: TrainState, info: dict[str, Any]) -> dict[str, Any]:
    evaluated = [row for row in state.history if "mAP" in row]
    best = max(evaluated, key=lambda row: row["mAP"] or 0.0)
    return {
        "fingerprint": experiment.fingerprint(),
        "final": evaluated[-1],
        "best": best,
        "size_bins": SizeBins.of(experiment.evaluate).as_json(),
        "history": state.history,
        "parameters": info["parameters"]["total"],
        "gflops": info["gflops"]["total"],
        "data": info["data"],
        "simulated": info["simulated"],
        "workers": info["workers"],
        "loop_s": round(state.loop_s, 3),
        "checkpoint_s": round(state.checkpoint_s, 3),
        "lost_s": round(state.lost_s, 3),
        "skipped_steps": state.skipped_steps,
        "digest": state.digest,
    }
