"""The nodes of a Ray cluster, each queried by a task that is pinned to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from raydet.launch.cluster import cluster, last_line  # isort: skip  -- before ray, as there

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydet.doctor.judge import Clock
from raydet.doctor.nodes import Answer, NoAnswer

NUM_CLOCK_QUERIES = 5
CLOCK_ANSWER_S = 10.0


@contextmanager
def joined() -> Iterator[ClusterNodes]:
    """The nodes of the cluster that RAY_ADDRESS names, while the block runs.

    Raises:
        ConfigError: it cannot be joined.
    """
    with cluster():
        yield ClusterNodes()


class ClusterNodes:
    """The nodes of the connected cluster, see `raydet.doctor.nodes.Nodes`."""

    def __init__(self) -> None:
        living = [node for node in ray.nodes() if node["Alive"]]
        addresses = [node["NodeManagerAddress"] for node in living]
        self._nodes = {
            node["NodeManagerAddress"]
            if addresses.count(node["NodeManagerAddress"]) == 1
            else f"{node['NodeManagerAddress']}/{node['NodeID'][:8]}": node
            for node in living
        }

    @property
    def names(self) -> Sequence[str]:
        """Addresses, with a part of the node id if two nodes share one."""
        return list(self._nodes)

    @property
    def gpus(self) -> Mapping[str, int]:
        return {name: int(node["Resources"].get("GPU", 0)) for name, node in self._nodes.items()}

    @property
    def cpus(self) -> int:
        return int(sum(node["Resources"].get("CPU", 0) for node in self._nodes.values()))

    def address(self, name: str) -> str:
        return str(self._nodes[name]["NodeManagerAddress"])

    def ask(
        self, question: Callable[..., Answer], arguments: Mapping[str, tuple[Any, ...]], *, timeout_s: float
    ) -> dict[str, Answer | NoAnswer]:
        """Ask by tasks that use no CPU and no GPU, so that a busy cluster answers, too."""
        task = ray.remote(num_cpus=0, max_retries=0)(question)
        references = {
            name: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._nodes[name]["NodeID"], soft=False)
            ).remote(*values)
            for name, values in arguments.items()
        }
        ready, _ = ray.wait(list(references.values()), num_returns=len(references), timeout=timeout_s)
        answers: dict[str, Answer | NoAnswer] = {}
        for name, reference in references.items():
            if reference not in ready:
                ray.cancel(reference, force=True)
                answers[name] = NoAnswer(f"no answer within {timeout_s:.0f} s")
                continue
            try:
                answers[name] = ray.get(reference)
            except ray.exceptions.RayError as error:
                answers[name] = NoAnswer(last_line(error))
        return answers

    def clocks(self) -> Mapping[str, Clock]:
        """Clocks relative to ours. The quickest of several answers is the most exact."""
        clocks: dict[str, Clock] = {}
        for name in self._nodes:
            for _ in range(NUM_CLOCK_QUERIES):
                asked_at = time.time()
                answer = self.ask(_clock, {name: ()}, timeout_s=CLOCK_ANSWER_S)[name]
                answered_at = time.time()
                if isinstance(answer, NoAnswer):
                    break
                error_s = (answered_at - asked_at) / 2
                if name not in clocks or error_s < clocks[name].error_s:
                    clocks[name] = Clock(answer - (asked_at + answered_at) / 2, error_s)
        return clocks


def _clock() -> float:
    return time.time()  # a built-in function itself cannot be a Ray task
