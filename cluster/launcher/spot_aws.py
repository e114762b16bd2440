"""EC2 nodes for Ray's cluster launcher: spot, and on demand if there is no spot.

Ray has no such fallback: its autoscaler (v2, 2.60) requests the same node type again when a launch is refused. This
provider decides when the refusal arrives. A node type with `InstanceMarketOptions` is requested as spot; if there is
no capacity or no quota for spot, the same machine is requested on demand, at its full price. Every other refusal
(permissions, a wrong image) is passed on: on demand it would be the same.

Ray loads the class by name (`provider.module` of aws.yaml), on the machine of `ray up` and on the head node. It is
based on a private class of Ray and works with the Ray version of the image.
"""

from __future__ import annotations

import logging
from typing import Any

from named import require_named
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

NO_SPOT = {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"}
"""EC2's error codes that may not occur for on-demand machines."""

NAMED = ("ImageId", "KeyName", "SubnetIds", "SecurityGroupIds", "IamInstanceProfile")


class SpotFirst(AWSNodeProvider):
    """Ray's provider for EC2 with a fallback to on-demand machines; creates no roles, keys or firewall rules."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start up to `count` machines; spot machines may become on-demand ones, all of them together.

        Raises:
            NodeLaunchException: EC2 refused, with its code as category.
        """
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as refusal:
            if "InstanceMarketOptions" not in node_config or refusal.category not in NO_SPOT:
                raise
            logger.warning(
                "Using %s on demand because spot was refused: %s",
                node_config["InstanceType"],
                refusal.category,
            )
        on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
        return super().create_node(on_demand, tags, count)

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Ray's own check of the account, if everything that it would create is set.

        Raises:
            ValueError: something is missing.
        """
        require_named(cluster_config, NAMED)
        return AWSNodeProvider.bootstrap_config(cluster_config)
