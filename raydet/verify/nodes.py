"""A Ray cluster of several nodes on this machine, whose nodes can be killed and replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # use the loopback; set before importing ray

import psutil
from ray.cluster_utils import Cluster

from raydet.launch.ray_private import TRIAL_TITLE

OBJECT_STORE_BYTES = 100_000_000


class LocalNodes:
    """A head without CPUs, for drivers and trials, and `count` nodes for workers, while the block runs."""

    def __init__(self, count: int, *, cpus: int) -> None:
        self._count = count
        self._cpus = cpus  # per node

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="raydet-", ignore_cleanup_errors=True)
        os.environ["RAY_TMPDIR"] = self._directory.name
        self._cluster = Cluster(
            initialize_head=True, head_node_args=self._node(cpus=0) | {"include_dashboard": False}
        )
        self._nodes = [self._add() for _ in range(self._count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()
        self._directory.cleanup()

    @property
    def address(self) -> str:
        """The value for RAY_ADDRESS."""
        return str(self._cluster.address)

    def kill_node_of(self, pid: int) -> None:
        """Kill the node of a process with everything that runs there; another node if the process is gone."""
        self._kill(self._node_of(pid))

    def announce_end_of_node_of(self, pid: int, *, seconds: int) -> Callable[[], None]:
        """Tell Ray, as a cloud does, that the node of a process will be pre-empted; returns a function to kill it."""
        node = self._node_of(pid)
        ray = Path(sys.executable).with_name("ray")
        command = [str(ray), "drain-node", "--address", self.address, "--node-id", node.node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "chaos"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, check=True, capture_output=True)
        return lambda: self._kill(node)

    def kill_trials(self) -> int:
        """Kill the processes of all trials, which run on the head; returns their number."""
        head = _raylet(self._cluster.head_node)
        num_killed = 0
        for process in psutil.process_iter(["cmdline"]):
            title = (process.info["cmdline"] or [""])[0]
            if title.startswith(TRIAL_TITLE) and head in _ancestors(process.pid):
                process.kill()
                num_killed += 1
        return num_killed

    def kill_one(self) -> None:
        """Kill the newest node."""
        self._kill(self._nodes[-1])

    def add(self) -> None:
        self._nodes.append(self._add())

    def _node_of(self, pid: int) -> Any:
        """The node that a process runs on; another one if the process is gone."""
        ancestors = _ancestors(pid)
        return next((node for node in self._nodes if _raylet(node) in ancestors), self._nodes[-1])

    def _kill(self, node: Any) -> None:
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def _add(self) -> Any:
        return self._cluster.add_node(**self._node(cpus=self._cpus))

    def _node(self, cpus: int) -> dict[str, object]:
        return {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_log_monitor": False}


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _ancestors(pid: int) -> set[int]:
    try:
        return {parent.pid for parent in psutil.Process(pid).parents()}
    except psutil.NoSuchProcess:
        return set()
