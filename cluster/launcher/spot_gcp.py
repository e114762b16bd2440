"""Compute Engine nodes for Ray's cluster launcher: spot, and on demand if there is no spot.

Like spot_aws.py, for node types with `scheduling.provisioningModel: SPOT`.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from named import require_named
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

logger = logging.getLogger(__name__)

NO_SPOT = ("ZONE_RESOURCE_POOL_EXHAUSTED", "STOCKOUT", "QUOTA_EXCEEDED", "quotaExceeded")
"""Reasons in Google's errors that may not occur for on-demand machines; spot has quotas of its own."""

NAMED = ("disks", "networkInterfaces", "serviceAccounts", "metadata")

ON_DEMAND = {"provisioningModel": "STANDARD", "onHostMaintenance": "TERMINATE", "automaticRestart": False}
"""Machines with GPUs cannot move to another host."""


class SpotFirst(GCPNodeProvider):
    """Ray's provider for Compute Engine with a fallback to on demand; creates no accounts, keys or networks."""

    def create_node(self, base_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start `count` machines, one by one: an error for several would not say which of them exist.

        Raises:
            Exception: Google refused; Ray has no exception type for it.
        """
        nodes: dict[str, Any] = {}
        for _ in range(count):
            nodes.update(self._create_one(base_config, tags))
        return nodes

    def _create_one(self, base_config: dict[str, Any], tags: dict[str, str]) -> dict[str, Any]:
        try:
            return super().create_node(base_config, tags, 1)
        except Exception as refusal:
            is_spot = base_config.get("scheduling", {}).get("provisioningModel") == "SPOT"
            if not is_spot or not any(reason in str(refusal) for reason in NO_SPOT):
                raise
            logger.warning(
                "Using %s on demand because spot was refused: %s", base_config["machineType"], refusal
            )
        return super().create_node(base_config | {"scheduling": dict(ON_DEMAND)}, tags, 1)

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The config unchanged, if everything is set.

        Ray's own step is skipped: it creates a service account with all permissions on Compute Engine.

        Raises:
            ValueError: something is missing.
        """
        require_named(cluster_config, NAMED)
        return copy.deepcopy(cluster_config) | {"head_node": {}}
