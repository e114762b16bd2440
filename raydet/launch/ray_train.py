"""Put a run into Ray Train: workers, restarts, the results or one clear error."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import logging
import time
from concurrent.futures import Future
from dataclasses import asdict
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
from raydet.launch.cluster import GRACE_S, Workers, free_resources, in_a_thread, last_line
from raydet.launch.elastic import fitting_size, larger_size, legal_sizes
from raydet.launch.loopback import LoopbackTorchConfig
from raydet.launch.worker import train_worker
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.heartbeat import STALL_REPORT
from raydet.resilience.stop_signal import STOP_FILE, StopKind, request_stop, requested_stop

logger = logging.getLogger("raydet")

GROWTH_INTERVAL_S = 30.0
"""Between two looks for room for more workers, where a run has fewer than it was meant to have."""
SETTLE_S = 10.0
"""For Ray to free what workers had that are gone."""


def launch(
    experiment: Experiment,
    *,
    run_dir: Path,
    workers: Workers,
    fault_tolerance: FaultTolerance,
) -> dict[str, Any]:
    """Train one run as a Ray Train job; an interrupted one continues from its newest checkpoint.

    After the loss of a worker or of its node the run starts again, with as many workers as find a place; pre-emption
    by the cluster costs nothing and is not counted.

    Args:
        run_dir: readable and writable from every node.
        fault_tolerance: how often to save, when to give up.

    Returns:
        The run's results, see `raydet.engine.process.run_process`, and the number of `restarts`.

    Raises:
        RaydetError: what a worker raised, as it raised it; among others that it was asked to stop, and has saved.
        HostMemoryError: the memory of a host was about to end once too often.
        StalledError: a worker stood still once too often.
        TrainingError: a worker died once too often.
    """
    num_failures = 0
    placed = _placed(experiment, workers) if newest_checkpoint(run_dir) else workers
    for attempt in itertools.count():
        (run_dir / STALL_REPORT).unlink(missing_ok=True)
        _obey_stop_requests(run_dir)
        growth = Growth(experiment, workers, placed)
        try:
            trainer = _trainer(experiment, run_dir, placed, fault_tolerance, attempt)
            results: dict[str, Any] = _fit(trainer, run_dir, growth).return_value
        except ray.train.TrainingFailedError as error:
            cause = _workers_own_error(error)
            if cause is not None and not isinstance(cause, RestartRequestedError | HostMemoryError):
                raise cause from error  # it would come again
            is_asked_for = isinstance(cause, RestartRequestedError) or isinstance(
                error, ray.train.PreemptionError
            )
            num_failures += not is_asked_for
            why = cause or _lost(error, run_dir)
            if num_failures > fault_tolerance.max_failures:
                raise why from error
            logger.warning("%s: %s; starting again", experiment.name, why)
            placed = _placed(experiment, workers)
        else:
            return results | {"restarts": attempt}
    raise AssertionError("unreachable")


def _obey_stop_requests(run_dir: Path) -> None:
    """What the workers were told before they died still holds, but for a new start: here it is.

    Raises:
        PreemptedError, StoppedEarlyError: the run is not to go on.
    """
    stop = requested_stop(run_dir)
    if stop is not None and stop.order != StopKind.RESTART:
        raise stop.as_error(stop.reason)
    (run_dir / STOP_FILE).unlink(missing_ok=True)


def _placed(experiment: Experiment, workers: Workers) -> Workers:
    """As many of the workers as find a place now; all of them where not even the fewest do, to wait for nodes."""
    if workers.fewest == workers.count:
        return workers
    sizes, size = _sizes(experiment, workers), None
    deadline = time.monotonic() + SETTLE_S
    while size != workers.count and time.monotonic() < deadline:  # what our own workers had becomes free
        size = fitting_size(sizes, free_resources(), workers.resources)
        time.sleep(0.5)
    if size is not None and size < workers.count:
        logger.warning("%s: going on with %d of %d workers", experiment.name, size, workers.count)
    return dataclasses.replace(workers, count=size or workers.count)


def _sizes(experiment: Experiment, workers: Workers) -> list[int]:
    return legal_sizes(experiment.train, fewest=workers.fewest, most=workers.count)


@dataclasses.dataclass(slots=True)
class Growth:
    """Looks whether a run that goes on with fewer workers could have more of them again."""

    experiment: Experiment
    workers: Workers
    """As it was meant."""
    placed: Workers
    """As it is."""
    is_ordered: bool = False

    @property
    def is_possible(self) -> bool:
        """There is something to look for."""
        return self.placed.count < self.workers.count and not self.is_ordered

    def look(self, run_dir: Path) -> None:
        """Order a new start, if there is room."""
        sizes, placed = _sizes(self.experiment, self.workers), self.placed.count
        size = larger_size(sizes, free_resources(), self.workers.resources, placed=placed)
        if size is not None:
            request_stop(run_dir, StopKind.RESTART, f"room for {size} workers instead of {placed}")
            self.is_ordered = True


def _lost(error: Exception, run_dir: Path) -> TrainingError:
    report = run_dir / STALL_REPORT
    if report.exists():
        return StalledError(json.loads(report.read_text())["text"])
    return TrainingError(f"a worker died: {_ranks(error)}; see {run_dir / 'training.log'}")


def _trainer(
    experiment: Experiment, run_dir: Path, workers: Workers, fault_tolerance: FaultTolerance, attempt: int
) -> TorchTrainer:
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "experiment": experiment.to_json(),
            "run_dir": str(run_dir),
            "threads": workers.cpus,
            "use_gpu": workers.use_gpu and not workers.cpu_for_gpu,
            "fault_tolerance": asdict(fault_tolerance),
            "attempt": attempt,
        },
        torch_config=_torch_config(workers),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.use_gpu, resources_per_worker=workers.resources
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=str(run_dir),
            failure_config=ray.train.FailureConfig(
                max_failures=0,  # `launch` tells a death from an error
                max_preemption_failures=0,
                controller_failure_limit=-1 if workers.may_wait else 1,
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _torch_config(workers: Workers) -> TorchConfig:
    backend = "gloo" if workers.cpu_for_gpu else None  # None: Ray's choice, by what the workers hold
    return TorchConfig(backend=backend) if workers.may_wait else LoopbackTorchConfig(backend=backend)


def _fit(trainer: TorchTrainer, run_dir: Path, growth: Growth) -> ray.train.Result:
    """Where this process is told to end, its workers are given the time to save."""
    future = in_a_thread(trainer.fit)
    try:
        while growth.is_possible and not _is_done(future, GROWTH_INTERVAL_S):
            look = in_a_thread(lambda: growth.look(run_dir))
            if _is_done(look, GROWTH_INTERVAL_S) and look.exception() is not None:
                logger.warning("cannot look for room: %s", look.exception())
        return future.result()
    except Terminated:
        request_stop(run_dir, StopKind.END, "the driver was asked to stop")
        concurrent.futures.wait([future], timeout=GRACE_S)
        raise


def _is_done(future: Future[Any], timeout_s: float) -> bool:
    return bool(concurrent.futures.wait([future], timeout=timeout_s).done)


def _workers_own_error(error: Exception) -> RaydetError | None:
    """What a worker raised on purpose, as it raised it; None where a worker died."""
    for failure in _failures(error).values():
        found: BaseException | None = failure
        while found is not None:
            if isinstance(found, RaydetError) and not isinstance(found, WorkerLostError):
                return found
            found = getattr(found, "cause", None) or found.__cause__
    return None


def _failures(error: Exception) -> dict[int, BaseException]:
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    return failures


def _ranks(error: Exception) -> str:
    ranks = [f"rank {rank}: {last_line(failure)}" for rank, failure in _failures(error).items()]
    return ", ".join(ranks) or last_line(error)
