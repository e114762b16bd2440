"""Keys that a manifest must set, so that Ray's launcher creates nothing in the account."""

from __future__ import annotations

from typing import Any


def require_named(cluster_config: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Check that every node type has the keys, and that the SSH key is set.

    Ray would create what is missing: keys for the whole project, open ports, accounts with wide permissions.

    Raises:
        ValueError: something is missing.
    """
    if not cluster_config.get("auth", {}).get("ssh_private_key"):
        raise ValueError("auth: ssh_private_key is missing; name the file of the private key")
    for name, node_type in cluster_config["available_node_types"].items():
        for key in keys:
            if not node_type["node_config"].get(key):
                raise ValueError(f"available_node_types.{name}.node_config: {key} is missing; name it")
