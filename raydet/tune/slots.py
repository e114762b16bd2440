"""How many trials run at a time: as many as the nodes have room for, while nodes come and go."""

from __future__ import annotations

import time
from collections.abc import Callable

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import ray
from ray.tune.search import BasicVariantGenerator
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raydet.launch.autoscaler import ask_for
from raydet.launch.capacity import Capacity, Request

LOOK_S = 2.0
"""Between two looks at the nodes."""


class Places:
    """Tells Ray Tune how many trials may run, and the cluster how many would.

    For each trial that has no place yet a placement group waits: that is what an autoscaler adds nodes for. It is given
    back as soon as there is room, for the trial to take, and ends with this process, whatever becomes of it.

    Args:
        request: of one trial.
        capacity: of the cluster.
        most: trials at a time.
        say: takes a line when the number changes.
    """

    def __init__(
        self, request: Request, capacity: Capacity, *, most: int, say: Callable[[str], None]
    ) -> None:
        self._request = request
        self._scales = capacity.scales
        # What the autoscaler will never add is not asked for.
        self._most = most if capacity.is_open else min(most, self._places(capacity))
        self._cap = most
        self._say = say
        self._waiting: list[tuple[PlacementGroup, ray.ObjectRef]] = []
        self._looked_at = time.monotonic()
        self.count = min(most, self._places(Capacity(capacity.nodes)))
        """Trials that may run at a time now."""
        self.searcher = BasicVariantGenerator(max_concurrent=self.count)
        """For Tune: it hands out the trials."""

    def look(self, left: int) -> None:
        """See which nodes are there, now and then.

        Args:
            left: trials that have not ended.
        """
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count = min(self._cap, self._places(Capacity(nodes)))
        if count != self.count:
            self._say(f"the cluster has {len(nodes)} nodes: up to {count} trials at a time")
            self.count = self.searcher.max_concurrent = count
        if self._scales:
            self._ask(min(left, self._most) - count)

    def close(self) -> None:
        """Ask for nothing more."""
        self._most = 0
        self._ask(0)

    def _ask(self, count: int) -> None:
        places = [place for _, place in self._waiting]
        placed = ray.wait(places, num_returns=len(places), timeout=0)[0] if places else []
        for number in reversed(range(len(self._waiting))):
            if number >= count or self._waiting[number][1] in placed:  # there is room for it
                remove_placement_group(self._waiting.pop(number)[0])
        while len(self._waiting) < count:
            group = ask_for(self._request)
            self._waiting.append((group, group.ready()))

    def _places(self, capacity: Capacity) -> int:
        """For trials; at least one, which then waits for its workers."""
        return max(1, capacity.places(self._request.worker) // self._request.workers)
