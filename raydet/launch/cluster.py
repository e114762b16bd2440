"""The Ray cluster: joined or started here, what of it one run takes, which of its nodes answer."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raydet.launch.ray_settings import IS_LOCAL  # isort: skip  -- before ray, which reads the environment at import

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydet.config import TrainConfig
from raydet.cpu import has_gpu, num_cores
from raydet.errors import ConfigError
from raydet.launch.autoscaler import DEFAULT_PATIENCE_S, await_nodes, current_capacity
from raydet.launch.capacity import Capacity, Request, nearest, refusal
from raydet.launch.elastic import legal_sizes
from raydet.launch.fork_server import warm_workers
from raydet.launch.head import find_head
from raydet.launch.ray_private import available_resources_per_node, forget_token

PING_TIMEOUT_S = 10.0
"""For a node to answer; where no process is free on it, one must be started."""
GRACE_S = 20.0
"""For workers to finish a step and save, once their driver is told to end; less than what schedulers grant."""
OBJECT_STORE_BYTES = 200_000_000
"""Enough for a local Ray: images never travel through the object store."""
CPU_FOR_GPU = "RAYDET_CPU_FOR_GPU"
"""Environment variable that says so: to try a cluster's scaling where there are no GPUs."""


Result = TypeVar("Result")


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
    """Nodes may still join the cluster: wait for them instead of giving up. Not so on a Ray of this machine alone."""
    cpu_for_gpu: bool = False
    """The GPUs are declared only: workers ask for them, and train on the CPU."""

    @property
    def resources(self) -> dict[str, float]:
        """What Ray is to set aside for each."""
        return {"CPU": self.cpus, "GPU": 1} if self.use_gpu else {"CPU": self.cpus}


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
                stack.enter_context(_own_token())
                if not has_gpu():  # a process that has touched CUDA must not be forked
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
    named = os.environ.get("RAY_ADDRESS")
    if named not in (None, "", "local"):  # with which Ray may start one
        find_head(named)
    try:
        if IS_LOCAL:
            ray.init(
                "local",  # else Ray would join whatever cluster it finds on this machine
                **quiet,
                num_cpus=num_cores(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                runtime_env={"py_executable": py_executable} if py_executable else None,
            )
        else:
            ray.init(**quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"cannot join the Ray cluster at {os.environ.get('RAY_ADDRESS')}: {last_line(error)}; "
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


@contextmanager
def _own_token() -> Iterator[None]:
    """A token for this Ray alone, in a directory that only this user can read, unless the user has said which to use.

    Ray would write one to ~/.ray/auth_token; from then on every Ray that this user starts would ask for it.
    """
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="raydet-token-") as directory:
        path = Path(directory) / "auth_token"
        path.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
        forget_token()
        try:
            yield
        finally:
            del os.environ["RAY_AUTH_TOKEN_PATH"]
            os.environ.pop("RAY_AUTH_MODE", None)  # Ray has set it
            forget_token()


def allotted(
    train: TrainConfig,
    count: int,
    *,
    fewest: int | None = None,
    cpus: int | None = None,
    use_gpu: bool | None = None,
    concurrency: int | None = 1,
    wait_s: float | None = None,
    say: Callable[[str], None],
) -> tuple[Workers, Capacity]:
    """The part of the connected cluster that each run takes, once the first of them has a place.

    Args:
        count: workers of a run.
        fewest: how few may go on after the loss of nodes; None: no fewer than `count`.
        cpus: threads per worker; None: with GPUs, the CPUs that a node has per GPU; else an even share of the CPUs.
        use_gpu: None: yes, if the cluster has GPUs, or may have.
        concurrency: runs at a time; this machine must have room for all of them, a cluster for one. None: as many as
            there are GPUs for, or one.
        wait_s: for nodes to join; None: half an hour, for what the cluster has or scales to.
        say: takes a line about what is waited for.

    Raises:
        ConfigError: this machine, or the cluster with all that it may scale to, has too little for that; or no place
            was found in time.
    """
    capacity, sizes = current_capacity(), legal_sizes(train, fewest=1, most=count)
    use_gpu = _takes_gpus(capacity) if use_gpu is None else use_gpu
    if concurrency is None:
        concurrency = max(1, int(capacity.now("GPU")) // count) if use_gpu else 1
    workers = Workers(
        count=count,
        fewest=fewest or count,
        cpus=cpus or _even_share(capacity, count * concurrency, use_gpu=use_gpu),
        use_gpu=use_gpu,
        may_wait=not IS_LOCAL,
        cpu_for_gpu=use_gpu and bool(os.environ.get(CPU_FOR_GPU)),
    )
    if IS_LOCAL:
        _refuse_beyond(capacity, Request(count, workers.resources, trials=concurrency), sizes)
    else:
        _await_place(workers, capacity, sizes, wait_s, say)
    return workers, capacity


def refuse_beyond_this_machine(
    train: TrainConfig, count: int, *, cpus: int | None, concurrency: int | None
) -> None:
    """Say at once what `allotted` could say only after Ray's start: this machine has too few CPUs.

    Raises:
        ConfigError: even one CPU per worker, or `cpus`, is too much. A cluster is not judged.
    """
    if IS_LOCAL and not ray.is_initialized():
        request = Request(count, {"CPU": cpus or 1}, trials=concurrency or 1)
        sizes = legal_sizes(train, fewest=1, most=count)
        _refuse_beyond(Capacity([{"CPU": float(num_cores())}]), request, sizes)


def _refuse_beyond(machine: Capacity, request: Request, sizes: Sequence[int]) -> None:
    refused = refusal(request, machine, sizes=sizes, where="this machine")
    if refused is not None:
        raise ConfigError(refused)


def _takes_gpus(capacity: Capacity) -> bool:
    if capacity.is_open and not capacity.now("GPU"):
        raise ConfigError(
            "the cluster has no GPU now and does not tell what it scales to; say --gpu or --cpu"
        )
    return capacity.most("GPU") > 0


def _await_place(
    workers: Workers,
    capacity: Capacity,
    sizes: Sequence[int],
    wait_s: float | None,
    say: Callable[[str], None],
) -> None:
    request = Request(workers.fewest, workers.resources)  # nodes may have been lost since the run began
    refused = refusal(request, capacity, sizes=sizes)
    if refused is not None and (capacity.scales or not wait_s):  # else somebody will add nodes
        raise ConfigError(refused)
    await_nodes(
        request,
        capacity,
        patience_s=DEFAULT_PATIENCE_S if wait_s is None else wait_s,
        say=say,
        remedy=nearest(request, Capacity(capacity.nodes), sizes),
    )


def _even_share(capacity: Capacity, num_workers: int, *, use_gpu: bool) -> int:
    nodes = capacity.at_most(lambda node: node.get("GPU" if use_gpu else "CPU", 0))
    if not use_gpu:
        return cpu_share([int(node.get("CPU", 0)) for node in nodes], num_workers)
    per_gpu = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    return max(1, min(per_gpu, default=1))


def cpu_share(cpus_of_nodes: Sequence[int], num_workers: int) -> int:
    """The most CPUs per worker with which all workers find a place, each on one node; 1 where there is no such number.

    >>> cpu_share([8, 8, 8, 8], 1), cpu_share([8, 8, 8, 8], 6), cpu_share([2], 4)
    (8, 4, 1)
    """
    for share in range(max(cpus_of_nodes, default=1), 1, -1):
        if sum(cpus // share for cpus in cpus_of_nodes) >= num_workers:
            return share
    return 1


def free_resources() -> list[dict[str, float]]:
    """What nobody uses, on each node that answers: Ray itself takes half a minute to miss a dead one."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    ping = ray.remote(num_cpus=0)(_pong)
    answers = {
        ping.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
        for node in nodes
    }
    answered, _ = ray.wait(list(answers), num_returns=len(answers), timeout=PING_TIMEOUT_S)
    free = available_resources_per_node()
    return [free.get(answers[reference], {}) for reference in answered if _is_value(reference)]


def _pong() -> bool:
    return True


def _is_value(reference: Any) -> bool:
    try:
        return bool(ray.get(reference))
    except ray.exceptions.RayError:  # the node was lost meanwhile
        return False


def in_a_thread(task: Callable[[], Result]) -> Future[Result]:
    """Run one of Ray's long calls: in the main thread it takes Ctrl-C for itself and leaves without a word."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="raydet-ray", daemon=True).start()
    return future


def last_line(error: BaseException) -> str:
    """What Ray says in the end, after its tracebacks."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
