"""One run as a Ray Train job: workers, restarts, the results or one clear error."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from raydet.checkpoint.retention import newest_checkpoint
from raydet.config import Experiment
from raydet.errors import (
    HostMemoryError,
    RaydetError,
    RestartRequestedError,
    StalledError,
    Terminated,
    TrainingError,
    WorkerLostError,
)
from raydet.launch.cluster import GRACE_S, Workers, free_resources, last_line, run_in_thread
from raydet.launch.elastic import fitting_size, larger_size, legal_sizes
from raydet.launch.loopback import LoopbackTorchConfig
from raydet.launch.ray_private import lean_trainer
from raydet.launch.worker import train_worker
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.heartbeat import STALL_REPORT
from raydet.resilience.stop_signal import STOP_FILE, StopKind, request_stop, requested_stop
from raydet.runs.results import RunResults

logger = logging.getLogger("raydet")

GROWTH_INTERVAL_S = 30.0
"""Time between two checks for free resources, if a run has fewer workers than requested."""
SETTLE_S = 10.0
"""How long Ray may take to free the resources of lost workers."""


def launch(
    experiment: Experiment,
    *,
    run_dir: Path,
    workers: Workers,
    fault_tolerance: FaultTolerance,
    task_code: Path | None = None,
) -> RunResults:
    """Train one run as a Ray Train job; an interrupted one resumes from its newest checkpoint.

    After the loss of a worker or of its node the run restarts, with as many workers as fit; pre-emption by the cluster
    does not count as a failure.

    Args:
        run_dir: readable and writable from every node.
        fault_tolerance: how often to save, when to give up.
        task_code: the code of a custom task, see `raydet.tasks.build`; readable from every node.

    Returns:
        The run's results, with the number of restarts.

    Raises:
        RaydetError: what a worker raised, unchanged; also that it was asked to stop, and has saved.
        HostMemoryError: a host was about to run out of memory once too often.
        StalledError: a worker stalled once too often.
        TrainingError: a worker died once too often.
    """
    num_failures = 0
    current = _fitting_workers(experiment, workers) if newest_checkpoint(run_dir) else workers
    for attempt in itertools.count():
        (run_dir / STALL_REPORT).unlink(missing_ok=True)
        stop = requested_stop(run_dir)
        if stop is not None and stop.kind != StopKind.RESTART:  # its workers died before they could obey it
            raise stop.as_error(stop.reason)
        (run_dir / STOP_FILE).unlink(missing_ok=True)
        grow = partial(_request_growth, experiment, run_dir, workers, current=current.count)
        try:
            trainer = _trainer(experiment, run_dir, current, fault_tolerance, attempt, task_code)
            result = _fit(trainer, run_dir, grow if current.count < workers.count else None)
        except ray.train.TrainingFailedError as error:
            cause = _raised_by_worker(error)
            if cause is not None and not isinstance(cause, RestartRequestedError | HostMemoryError):
                raise cause from error  # a restart would raise it again
            is_requested = isinstance(cause, RestartRequestedError)
            num_failures += not (is_requested or isinstance(error, ray.train.PreemptionError))
            why = cause or _worker_loss(error, run_dir)
            if num_failures > fault_tolerance.max_failures:
                raise why from error
            logger.warning("%s: %s; restarting", experiment.name, why)
            current = _fitting_workers(experiment, workers)
        else:
            return replace(RunResults.parse(result.return_value), restarts=attempt)
    raise AssertionError("unreachable")


def _fitting_workers(experiment: Experiment, workers: Workers) -> Workers:
    """As many of the workers as fit now; all of them if not even the fewest fit, to wait for nodes."""
    if workers.fewest == workers.count:
        return workers
    sizes, size = _sizes(experiment, workers), None
    deadline = time.monotonic() + SETTLE_S  # resources of our own lost workers become free
    while size != workers.count and time.monotonic() < deadline:
        size = fitting_size(sizes, free_resources(), workers.resources)
        time.sleep(0.5)
    if size is not None and size < workers.count:
        logger.warning("%s: continuing with %d of %d workers", experiment.name, size, workers.count)
    return dataclasses.replace(workers, count=size or workers.count)


def _sizes(experiment: Experiment, workers: Workers) -> list[int]:
    return legal_sizes(experiment.train, fewest=workers.fewest, most=workers.count)


def _request_growth(experiment: Experiment, run_dir: Path, workers: Workers, *, current: int) -> bool:
    """Request a restart if more than the `current` number of workers fit; whether one was requested."""
    sizes = _sizes(experiment, workers)
    size = larger_size(sizes, free_resources(), workers.resources, current=current)
    if size is not None:
        request_stop(run_dir, StopKind.RESTART, f"free resources for {size} workers instead of {current}")
    return size is not None


def _worker_loss(error: Exception, run_dir: Path) -> TrainingError:
    report = run_dir / STALL_REPORT
    if report.exists():
        return StalledError(json.loads(report.read_text())["text"])
    ranks = [f"rank {rank}: {last_line(failure)}" for rank, failure in _failures(error).items()]
    why = ", ".join(ranks) or last_line(error)
    return TrainingError(f"a worker died: {why}; see {run_dir / 'training.log'}")


def _trainer(
    experiment: Experiment,
    run_dir: Path,
    workers: Workers,
    fault_tolerance: FaultTolerance,
    attempt: int,
    task_code: Path | None,
) -> TorchTrainer:
    backend = "gloo" if workers.cpu_for_gpu else None  # None: Ray's choice, by the resources of the workers
    torch_config = TorchConfig if workers.may_wait else LoopbackTorchConfig
    trainer: TorchTrainer = lean_trainer(is_local=not workers.may_wait)(
        train_worker,
        train_loop_config={
            "experiment": experiment.to_json(),
            "run_dir": str(run_dir),
            "threads": workers.cpus,
            "use_gpu": workers.use_gpu and not workers.cpu_for_gpu,
            "fault_tolerance": asdict(fault_tolerance),
            "attempt": attempt,
            "task_code": None if task_code is None else str(task_code),
        },
        torch_config=torch_config(backend=backend),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.use_gpu, resources_per_worker=workers.resources
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=str(run_dir),
            failure_config=ray.train.FailureConfig(
                max_failures=0,  # `launch` distinguishes a death from an error
                max_preemption_failures=0,
                controller_failure_limit=-1 if workers.may_wait else 1,
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    return trainer


def _fit(trainer: TorchTrainer, run_dir: Path, request_growth: Callable[[], bool] | None) -> ray.train.Result:
    """Run the trainer, and meanwhile request growth until it succeeds; on SIGTERM the workers get time to save."""
    future = run_in_thread(trainer.fit)
    try:
        while request_growth is not None and not _is_done(future, GROWTH_INTERVAL_S):
            check = run_in_thread(request_growth)
            if not _is_done(check, GROWTH_INTERVAL_S):
                continue
            if check.exception() is not None:
                logger.warning("cannot query free resources: %s", check.exception())
            elif check.result():
                break
        return future.result()
    except Terminated:
        request_stop(run_dir, StopKind.END, "the driver was asked to stop")
        concurrent.futures.wait([future], timeout=GRACE_S)
        raise


def _is_done(future: Future[Any], timeout_s: float) -> bool:
    return bool(concurrent.futures.wait([future], timeout=timeout_s).done)


def _raised_by_worker(error: Exception) -> RaydetError | None:
    """The error that a worker raised on purpose, unchanged; None: a worker died."""
    for failure in _failures(error).values():
        found: BaseException | None = failure
        while found is not None:
            if isinstance(found, RaydetError) and not isinstance(found, WorkerLostError):
                return found
            found = getattr(found, "cause", None) or found.__cause__
    return None


def _failures(error: Exception) -> dict[int, BaseException]:
    return getattr(error, "worker_failures", {})
