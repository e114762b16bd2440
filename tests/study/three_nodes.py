"""A Ray cluster of three nodes on this machine; prints its address, kills a node per line of input, ends with it."""

from __future__ import annotations

import os
import sys

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the loopback, not the machine's address; before ray

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_log_monitor": False}


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    others = [cluster.add_node(**NODE) for _ in range(2)]
    say(cluster.address)
    for _ in sys.stdin:
        cluster.remove_node(others.pop(), allow_graceful=False)
        say("killed")
    cluster.shutdown()


if __name__ == "__main__":
    main()
