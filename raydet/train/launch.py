"""Put a run into Ray Train: a cluster to talk to, workers, the results or one clear error."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydet.train.ray_settings import IS_LOCAL  # isort: skip  -- before ray, which reads the environment at import

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydet.config import Experiment
from raydet.errors import (
    ConfigError,
    PreemptedError,
    RaydetError,
    StalledError,
    Terminated,
    TrainingError,
    WorkerLostError,
)
from raydet.train.checkpoints import newest_checkpoint
from raydet.train.control import STOP_FILE, Upkeep
from raydet.train.elastic import fitting_size, legal_sizes
from raydet.train.heartbeat import STALL_REPORT
from raydet.train.warm import warm_workers
from raydet.train.worker import train_worker

logger = logging.getLogger("raydet")

GRACE_S = 20.0
"""For workers to finish a step and save, once their driver is told to end; less than what schedulers grant."""
PING_TIMEOUT_S = 10.0
"""For a node to answer; where no process is free on it, one must be started."""
OBJECT_STORE_BYTES = 200_000_000
"""Enough for a local Ray: pictures never travel through the object store."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The part of the cluster that one run takes."""

    count: int
    fewest: int
    """How few may go on after the loss of nodes."""
    cpus: int
    """CPU threads per worker."""
    use_gpu: bool
    """One GPU per worker."""
    may_wait: bool
    """Nodes may still join the cluster: wait for them instead of giving up."""


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray cluster while the block runs: the one that RAY_ADDRESS names, or one on this machine.

    Raises:
        ConfigError: the cluster cannot be joined.
    """
    with ExitStack() as stack:
        if not ray.is_initialized():
            py_executable = None
            if IS_LOCAL:
                stack.enter_context(_own_temporary_directory())
                if not Path("/dev/nvidiactl").exists():  # a process that has touched CUDA must not be forked
                    py_executable = stack.enter_context(warm_workers())
            stack.callback(ray.shutdown)
            with _own_signals():
                _connect(py_executable)
        yield


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself, kills its processes and leaves without a word."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _connect(py_executable: str | None) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if IS_LOCAL:
            ray.init(
                "local",  # else Ray would join whatever cluster it finds on this machine
                **quiet,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                runtime_env={"py_executable": py_executable} if py_executable else None,
            )
        else:
            ray.init(**quiet)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            f"cannot join the Ray cluster at {os.environ.get('RAY_ADDRESS')}: {_last_line(error)}; "
            "check RAY_ADDRESS and the token"
        ) from error
    for name in ("ray", "ray.tune", "ray.train"):  # to our log file, not to the terminal
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


@contextmanager
def _own_temporary_directory() -> Iterator[None]:
    """Where Ray puts sockets and logs, unless the user has said where.

    In the common /tmp/ray, Ray Train's helpers look up "the" cluster of the machine, and where a cluster was killed
    there earlier each trial waits 12 s for it.
    """
    if "RAY_TMPDIR" in os.environ:
        yield
        return
    # Short, because the names of Unix sockets are; processes that still write there must not spoil the end.
    with tempfile.TemporaryDirectory(prefix="raydet-", ignore_cleanup_errors=True) as directory:
        os.environ["RAY_TMPDIR"] = directory
        try:
            yield
        finally:
            del os.environ["RAY_TMPDIR"]


def workers_for(
    count: int,
    *,
    fewest: int | None = None,
    cpus: int | None = None,
    use_gpu: bool | None = None,
    concurrency: int = 1,
) -> Workers:
    """Workers of one run among `concurrency` runs at a time, on the connected cluster.

    Args:
        count: workers.
        fewest: how few may go on after the loss of nodes; None: no fewer than `count`.
        cpus: threads per worker; None: an even share of the CPUs that are there.
        use_gpu: None: yes, if the cluster has GPUs now.

    Raises:
        ConfigError: this machine has fewer CPUs or GPUs than that takes. Another cluster may grow.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have = {name: int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU")}
    num_workers = count * concurrency
    use_gpu = have["GPU"] > 0 if use_gpu is None else use_gpu
    want = {"CPU": num_workers * (cpus or 1), "GPU": num_workers if use_gpu else 0}
    for name, number in want.items():
        if IS_LOCAL and number > have[name]:
            raise ConfigError(
                f"{concurrency} trials x {count} workers want {number} {name}s, this machine has {have[name]}; "
                "lower --workers, --concurrency or --cpus-per-worker"
            )
    share = cpus or cpu_share([int(node.get("CPU", 0)) for node in nodes], num_workers)
    return Workers(count=count, fewest=fewest or count, cpus=share, use_gpu=use_gpu, may_wait=not IS_LOCAL)


def cpu_share(cpus_of_nodes: Sequence[int], num_workers: int) -> int:
    """The most CPUs per worker with which all workers find a place, each on one node; 1 where there is no such number.

    >>> cpu_share([8, 8, 8, 8], 1), cpu_share([8, 8, 8, 8], 6), cpu_share([2], 4)
    (8, 4, 1)
    """
    for share in range(max(cpus_of_nodes, default=1), 1, -1):
        if sum(cpus // share for cpus in cpus_of_nodes) >= num_workers:
            return share
    return 1


def launch(
    experiment: Experiment,
    *,
    run_dir: Path,
    workers: Workers,
    upkeep: Upkeep,
) -> dict[str, Any]:
    """Train one run as a Ray Train job; an interrupted one continues from its newest checkpoint.

    After the loss of a worker or of its node the run starts again, with as many workers as find a place; pre-emption
    by the cluster costs nothing and is not counted.

    Args:
        run_dir: readable and writable from every node.
        upkeep: how often to save, when to give up.

    Returns:
        The run's results, see `raydet.train.process.run_process`, and the number of `restarts`.

    Raises:
        RaydetError: what a worker raised, as it raised it.
        StalledError: a worker stood still once too often.
        TrainingError: a worker died once too often.
    """
    num_failures = 0
    for attempt in itertools.count():
        for leftover in (STALL_REPORT, STOP_FILE):
            (run_dir / leftover).unlink(missing_ok=True)
        placed = _placed(experiment, workers) if attempt or newest_checkpoint(run_dir) else workers
        trainer = _trainer(experiment, run_dir, placed, upkeep, attempt)
        try:
            results: dict[str, Any] = _fit(trainer, run_dir).return_value
        except ray.train.TrainingFailedError as error:
            cause = _workers_own_error(error)
            if isinstance(cause, PreemptedError) or isinstance(error, ray.train.PreemptionError):
                logger.warning(
                    "%s: %s; starting again elsewhere", experiment.name, cause or _last_line(error)
                )
                continue
            if cause is not None:  # it would come again
                raise cause from error
            num_failures += 1
            lost = _lost(error, run_dir)
            if num_failures > upkeep.max_failures:
                raise lost from error
            logger.warning("%s: %s; starting again", experiment.name, lost)
        else:
            return results | {"restarts": attempt}
    raise AssertionError("unreachable")


def _placed(experiment: Experiment, workers: Workers) -> Workers:
    """As many of the workers as find a place now; all of them where not even the fewest do, to wait for nodes."""
    if workers.fewest == workers.count:
        return workers
    sizes = legal_sizes(experiment.train, fewest=workers.fewest, most=workers.count)
    size = fitting_size(sizes, _answering_nodes(), _resources(workers))
    if size is not None and size < workers.count:
        logger.warning("%s: going on with %d of %d workers", experiment.name, size, workers.count)
    return dataclasses.replace(workers, count=size or workers.count)


def _answering_nodes() -> list[dict[str, float]]:
    """Resources of the nodes that are there: Ray itself takes half a minute to miss a dead one."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ping = ray.remote(num_cpus=0)(_pong)
    answers = {
        ping.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node
        for node in nodes
    }
    answered, _ = ray.wait(list(answers), num_returns=len(answers), timeout=PING_TIMEOUT_S)
    return [answers[reference]["Resources"] for reference in answered if _is_value(reference)]


def _pong() -> bool:
    return True


def _is_value(reference: Any) -> bool:
    try:
        return bool(ray.get(reference))
    except ray.exceptions.RayError:  # the node was lost meanwhile
        return False


def _lost(error: Exception, run_dir: Path) -> TrainingError:
    report = run_dir / STALL_REPORT
    if report.exists():
        return StalledError(json.loads(report.read_text())["text"])
    return TrainingError(f"a worker died: {_ranks(error)}; see {run_dir / 'training.log'}")


def _trainer(
    experiment: Experiment, run_dir: Path, workers: Workers, upkeep: Upkeep, attempt: int
) -> TorchTrainer:
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "experiment": experiment.to_json(),
            "run_dir": str(run_dir),
            "threads": workers.cpus,
            "use_gpu": workers.use_gpu,
            "upkeep": asdict(upkeep),
            "attempt": attempt,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.use_gpu, resources_per_worker=_resources(workers)
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


def _fit(trainer: TorchTrainer, run_dir: Path) -> ray.train.Result:
    """Where this process is told to end, its workers are given the time to save."""
    future = _in_a_thread(trainer.fit)
    try:
        return future.result()
    except Terminated:
        (run_dir / STOP_FILE).touch()
        concurrent.futures.wait([future], timeout=GRACE_S)
        raise


def _in_a_thread(fit: Callable[[], ray.train.Result]) -> Future[ray.train.Result]:
    """In the main thread Ray Train takes Ctrl-C for itself and leaves without a word."""
    future: Future[ray.train.Result] = Future()

    def run() -> None:
        try:
            future.set_result(fit())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="raydet-fit", daemon=True).start()
    return future


def _resources(workers: Workers) -> dict[str, float]:
    return {"CPU": workers.cpus, "GPU": 1} if workers.use_gpu else {"CPU": workers.cpus}


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
    ranks = [f"rank {rank}: {_last_line(failure)}" for rank, failure in _failures(error).items()]
    return ", ".join(ranks) or _last_line(error)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
