"""Slots for trials: how many can run at a time on the current nodes of the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import ray
from ray.tune.search import BasicVariantGenerator
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raydet.launch.autoscaler import reserve_resources
from raydet.launch.capacity import Capacity, Request

UPDATE_INTERVAL_S = 2.0
"""Seconds between two queries of the nodes."""


class Slots:
    """Limits the trials of Ray Tune to the slots of the cluster, and asks the autoscaler for more nodes.

    For each trial without a slot there is a pending placement group, for which an autoscaler adds nodes. It is removed
    as soon as it is placed, so that the trial can take the resources. It does not outlive this process.

    Args:
        request: the resources of one trial.
        most: maximum number of trials at a time.
        say: takes a line when the number of slots changes.
    """

    def __init__(
        self, request: Request, capacity: Capacity, *, most: int, say: Callable[[str], None]
    ) -> None:
        self._request = request
        self._scales = capacity.scales
        # Nodes that the autoscaler can never add are not requested.
        self._attainable = most if capacity.is_open else min(most, self._num_slots(capacity))
        self._limit = most
        self._say = say
        self._pending: list[tuple[PlacementGroup, ray.ObjectRef]] = []
        self._updated_at = time.monotonic()
        self.count = min(most, self._num_slots(Capacity(capacity.nodes)))
        """Current number of slots."""
        self.searcher = BasicVariantGenerator(max_concurrent=self.count)
        """Search algorithm for Tune, which hands out the trials."""

    def update(self, num_left: int) -> None:
        """Adapt the number of slots to the current nodes, every few seconds; `num_left` trials have not ended."""
        if time.monotonic() - self._updated_at < UPDATE_INTERVAL_S:
            return
        self._updated_at = time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count = min(self._limit, self._num_slots(Capacity(nodes)))
        if count != self.count:
            self._say(f"the cluster has {len(nodes)} nodes: up to {count} trials at a time")
            self.count = self.searcher.max_concurrent = count
        if self._scales:
            self._request_slots(min(num_left, self._attainable) - count)

    def close(self) -> None:
        """Withdraw all requests for nodes."""
        self._attainable = 0
        self._request_slots(0)

    def _request_slots(self, count: int) -> None:
        references = [reference for _, reference in self._pending]
        placed = ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
        for number in reversed(range(len(self._pending))):
            if number >= count or self._pending[number][1] in placed:
                remove_placement_group(self._pending.pop(number)[0])
        while len(self._pending) < count:
            group = reserve_resources(self._request)
            self._pending.append((group, group.ready()))

    def _num_slots(self, capacity: Capacity) -> int:
        """Number of trials that fit; at least one, which then waits for its workers."""
        return max(1, capacity.slots(self._request.worker) // self._request.workers)
