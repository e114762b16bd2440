"""A Ray cluster of several nodes on this machine, whose nodes can be killed and replaced."""

from __future__ import annotations

import os
import tempfile
from types import TracebackType
from typing import Any, Self

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the loopback, not the machine's address; before ray

import psutil
from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100_000_000


class LocalNodes:
    """A head without CPUs, where drivers and trials stand, and nodes for workers, while the block runs.

    Args:
        count: nodes beside the head.
        cpus: of each.
    """

    def __init__(self, count: int, *, cpus: int) -> None:
        self._count = count
        self._cpus = cpus

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
        """For RAY_ADDRESS."""
        return str(self._cluster.address)

    def kill_node_of(self, pid: int) -> None:
        """Take away the node of a process, at once, with all that runs there; another one if the process is gone."""
        try:
            above = {parent.pid for parent in psutil.Process(pid).parents()}
        except psutil.NoSuchProcess:
            above = set()
        for node in self._nodes:
            (raylet,) = node.all_processes["raylet"]
            if raylet.process.pid in above:
                self._kill(node)
                return
        self.kill_one()

    def kill_one(self) -> None:
        """Take away the newest node."""
        self._kill(self._nodes[-1])

    def add(self) -> None:
        """One more node."""
        self._nodes.append(self._add())

    def _kill(self, node: Any) -> None:
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def _add(self) -> Any:
        return self._cluster.add_node(**self._node(cpus=self._cpus))

    def _node(self, cpus: int) -> dict[str, Any]:
        return {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_log_monitor": False}
