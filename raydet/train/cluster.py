"""The Ray cluster: joined or started here, what of it one run takes, which of its nodes answer."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydet.train.ray_settings import IS_LOCAL  # isort: skip  -- before ray, which reads the environment at import

import ray
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydet.errors import ConfigError
from raydet.train.head import find_head
from raydet.train.warm import warm_workers

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
    """Nodes may still join the cluster: wait for them instead of giving up. Not so on a Ray of this machine alone."""

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
    named = os.environ.get("RAY_ADDRESS")
    if named not in (None, "", "local"):  # with which Ray may start one
        find_head(named)
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


def last_line(error: BaseException) -> str:
    """What Ray says in the end, after its tracebacks."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
