"""The Ray cluster: joining or starting it, the share of it that one run takes, its free resources."""

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

from raydet.launch.worker_options import WorkerOptions

from raydet.launch.ray_settings import IS_LOCAL  # isort: skip  -- before ray, which reads the environment at import

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydet.config import TrainConfig
from raydet.cpu import num_cores
from raydet.errors import ConfigError
from raydet.launch.autoscaler import DEFAULT_WAIT_S, current_capacity, wait_for_nodes
from raydet.launch.capacity import Capacity, Request, nearest, refusal
from raydet.launch.elastic import legal_sizes
from raydet.launch.fork_client import SERVER
from raydet.launch.fork_server import CLIENT, warm_workers
from raydet.launch.head import find_head
from raydet.launch.ray_private import (
    available_resources_per_node,
    forget_token,
    starting_workers_with,
)

PING_TIMEOUT_S = 10.0
"""How long a node may take to answer; it may have to start a process for it."""
GRACE_S = 20.0
"""How long workers may take to finish a step and save when their driver is terminated; schedulers grant more."""
OBJECT_STORE_BYTES = 200_000_000
"""Enough for a local Ray: images never travel through the object store."""
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest name of one of Ray's sockets, below its temporary directory."""
MAX_TMPDIR = 107 - len(SOCKET)
"""Unix sockets have names of at most 107 bytes."""
RANDOM_CHARACTERS = 8
"""How many characters `tempfile` appends to a prefix."""
CPU_FOR_GPU = "RAYDET_CPU_FOR_GPU"
"""Environment variable for `Workers.cpu_for_gpu`."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Workers:
    """The share of the cluster that one run takes."""

    count: int
    fewest: int
    """How few workers may continue after the loss of nodes."""
    cpus: int
    """CPU threads per worker."""
    use_gpu: bool
    """One GPU per worker."""
    may_wait: bool
    """Whether nodes may still join the cluster, so that it is worth waiting; false for a Ray on this machine alone."""
    cpu_for_gpu: bool = False
    """Workers ask for declared GPUs, but train on the CPU: to test the scaling of a cluster without GPUs."""

    @property
    def resources(self) -> dict[str, float]:
        """Resources that Ray reserves for each worker."""
        return {"CPU": self.cpus, "GPU": 1} if self.use_gpu else {"CPU": self.cpus}


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray cluster while the block runs: the one that RAY_ADDRESS names, or one on this machine.

    Raises:
        ConfigError: the cluster cannot be joined.
    """
    with ExitStack() as stack:
        if not ray.is_initialized():
            if IS_LOCAL:
                stack.enter_context(_own_temporary_directory())
                stack.enter_context(_own_token())
                stack.enter_context(warm_workers())
                if SERVER in os.environ:
                    stack.enter_context(starting_workers_with(CLIENT))
            stack.callback(ray.shutdown)
            before = signal.getsignal(signal.SIGTERM)
            _connect()
            # Ray's handler kills its processes and exits without a message.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
        yield


def _connect() -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    if address not in (None, "", "local"):  # for these Ray may start a cluster
        find_head(address)
    try:
        if IS_LOCAL:
            ray.init(
                "local",  # otherwise Ray would join any cluster that it finds on this machine
                **quiet,
                num_cpus=num_cores(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
            )
        else:
            ray.init(**quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"cannot join the Ray cluster at {address}: {last_line(error)}; check RAY_ADDRESS and the token"
        ) from error
    for name in ("ray", "ray.tune", "ray.train"):  # to our log file, not to the terminal
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


@contextmanager
def _own_temporary_directory() -> Iterator[None]:
    """A temporary directory for the sockets and logs of this Ray, unless the user has set one.

    In the shared /tmp/ray, Ray Train's helpers look up "the" cluster of the machine, and if a cluster was killed there
    earlier, each trial waits 12 s for it.
    """
    if "RAY_TMPDIR" in os.environ:
        own = os.environ["RAY_TMPDIR"]
        if len(os.fsencode(own)) > MAX_TMPDIR:
            raise _too_long("RAY_TMPDIR", own, MAX_TMPDIR)
        yield
        return
    own, prefix = tempfile.gettempdir(), "raydet-"
    is_short = len(os.fsencode(os.path.join(own, prefix))) + RANDOM_CHARACTERS <= MAX_TMPDIR
    if not is_short and not os.access("/tmp", os.W_OK):
        raise _too_long("TMPDIR", own, MAX_TMPDIR - len(prefix) - RANDOM_CHARACTERS - 1)
    # Processes may still write there at the end.
    with tempfile.TemporaryDirectory(
        prefix=prefix,
        dir=own if is_short else "/tmp",
        ignore_cleanup_errors=True,
    ) as directory:
        os.environ["RAY_TMPDIR"] = directory
        try:
            yield
        finally:
            del os.environ["RAY_TMPDIR"]


def _too_long(name: str, directory: str, limit: int) -> ConfigError:
    return ConfigError(
        f"{name} is too long: expected at most {limit} bytes, because Ray's sockets lie below it, got "
        f"{len(os.fsencode(directory))} ({directory}); set RAY_TMPDIR to a short directory, for example "
        "RAY_TMPDIR=/tmp/ray"
    )


@contextmanager
def _own_token() -> Iterator[None]:
    """A token for this Ray alone, in a directory that only this user can read, unless the user has set one.

    Ray would write one to ~/.ray/auth_token; from then on every Ray that this user starts would require it.
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


def allocate_workers(
    train: TrainConfig,
    options: WorkerOptions,
    *,
    concurrency: int | None = 1,
    say: Callable[[str], None],
) -> tuple[Workers, Capacity]:
    """The share of the connected cluster that each run takes; waits until the first run can start.

    Args:
        concurrency: runs at a time; on this machine all of them must fit, on a cluster one. None: as many as there are
            GPUs for, or one.
        say: called with a line of text about what is waited for.

    Raises:
        ConfigError: this machine, or the cluster with all that it may scale to, has too few resources; or they were
            not available in time.
    """
    count, use_gpu = options.workers, options.use_gpu
    capacity, sizes = current_capacity(), legal_sizes(train, fewest=1, most=count)
    if use_gpu is None:
        if capacity.is_open and not capacity.now("GPU"):
            raise ConfigError(
                "the cluster has no GPU now and does not say what it scales to; pass --gpu or --cpu"
            )
        use_gpu = capacity.most("GPU") > 0
    if concurrency is None:
        concurrency = max(1, int(capacity.now("GPU")) // count) if use_gpu else 1
    workers = Workers(
        count=count,
        fewest=options.min_workers or count,
        cpus=options.cpus_per_worker or _even_share(capacity, count * concurrency, use_gpu=use_gpu),
        use_gpu=use_gpu,
        may_wait=not IS_LOCAL,
        cpu_for_gpu=use_gpu and bool(os.environ.get(CPU_FOR_GPU)),
    )
    if IS_LOCAL:
        _refuse_too_large(capacity, Request(count, workers.resources, trials=concurrency), sizes)
    else:
        _wait_for_workers(workers, capacity, sizes, options.wait_s, say)
    return workers, capacity


def check_fits_this_machine(train: TrainConfig, options: WorkerOptions, *, concurrency: int | None) -> None:
    """Refuse at once what `allocate_workers` would refuse after Ray's start: this machine has too few CPUs.

    Raises:
        ConfigError: even one CPU per worker, or `cpus_per_worker`, is too much. A cluster is not checked.
    """
    if IS_LOCAL and not ray.is_initialized():
        request = Request(options.workers, {"CPU": options.cpus_per_worker or 1}, trials=concurrency or 1)
        sizes = legal_sizes(train, fewest=1, most=options.workers)
        _refuse_too_large(Capacity([{"CPU": float(num_cores())}]), request, sizes)


def _refuse_too_large(machine: Capacity, request: Request, sizes: Sequence[int]) -> None:
    refused = refusal(request, machine, sizes=sizes, where="this machine")
    if refused is not None:
        raise ConfigError(refused)


def _wait_for_workers(
    workers: Workers,
    capacity: Capacity,
    sizes: Sequence[int],
    wait_s: float | None,
    say: Callable[[str], None],
) -> None:
    request = Request(workers.fewest, workers.resources)  # nodes may have been lost since the run started
    refused = refusal(request, capacity, sizes=sizes)
    if refused is not None and (capacity.scales or not wait_s):  # otherwise the user will add nodes
        raise ConfigError(refused)
    wait_for_nodes(
        request,
        capacity,
        timeout_s=DEFAULT_WAIT_S if wait_s is None else wait_s,
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
    """Most CPUs per worker with which all workers fit, each on one node; 1 if there is no such number.

    >>> cpu_share([8, 8, 8, 8], 1), cpu_share([8, 8, 8, 8], 6), cpu_share([2], 4)
    (8, 4, 1)
    """
    for share in range(max(cpus_of_nodes, default=1), 1, -1):
        if sum(cpus // share for cpus in cpus_of_nodes) >= num_workers:
            return share
    return 1


def free_resources() -> list[dict[str, float]]:
    """Unused resources of each node that answers: Ray itself takes half a minute to notice a dead one."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    ping = ray.remote(num_cpus=0)(_pong)
    answers = {
        ping.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
        for node in nodes
    }
    answered, _ = ray.wait(list(answers), num_returns=len(answers), timeout=PING_TIMEOUT_S)
    free = available_resources_per_node()
    return [free.get(answers[reference], {}) for reference in answered if _is_alive(reference)]


def _pong() -> bool:
    return True


def _is_alive(reference: Any) -> bool:
    try:
        return bool(ray.get(reference))
    except ray.exceptions.RayError:  # the node was lost meanwhile
        return False


def run_in_thread(task: Callable[[], Result]) -> Future[Result]:
    """Run one of Ray's long calls in a thread: in the main thread it would handle Ctrl-C itself and exit silently."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="raydet-ray", daemon=True).start()
    return future


def last_line(error: BaseException) -> str:
    """The last line of an error of Ray, after its tracebacks."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
