"""What the cluster has and may scale to, queried from Ray; and waiting for nodes, with the reason.

Ray has no common location for the limits of an autoscaler. Clusters of the launcher (`ray up`) have them in a file that
the monitor on the head is started with. If there is no such file (KubeRay runs the autoscaler in a container of its
own), the request is made, and the autoscaler's status says whether it is infeasible.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydet.launch.ray_settings import IS_LOCAL  # isort: skip  -- before ray, which reads the environment at import

import psutil
import ray
import yaml
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydet.errors import ConfigError
from raydet.launch import ray_private
from raydet.launch.capacity import Capacity, NodeType, Request
from raydet.launch.ray_private import HEAD_RESOURCE, GetClusterStatusReply, NodeStatus

DEFAULT_WAIT_S = 1800.0
"""How long to wait for cloud nodes by default."""
TASK_TIMEOUT_S = 15.0
STATUS_TIMEOUT_S = 5
POLL_S = 1.0
REPORT_S = 30.0
"""Time between two equal status lines."""
INFEASIBLE_AFTER_S = 15.0
"""How long a request must be infeasible: three rounds of the autoscaler, as nodes of others may be leaving."""

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class HeadAutoscaler:
    """What the head knows about the autoscaler."""

    has_monitor: bool
    """The autoscaler runs on the head."""
    config: Mapping[str, Any] | None
    """Content of its config file; None: there is none, and it adds no nodes."""


def current_capacity() -> Capacity:
    """The nodes of the connected cluster, and those that may join."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node["Resources"] for node in alive]
    if IS_LOCAL:
        return Capacity(nodes)
    status = cluster_status()
    head = _query_head(alive)
    if head.config is not None:
        states = [] if status is None else status.cluster_resource_state.node_states
        present = Counter(node.ray_node_type_name for node in states if node.status != NodeStatus.DEAD)
        return _with_config(nodes, head.config, present)
    has_reported = status is not None and status.autoscaling_state.autoscaler_state_version > 0
    return Capacity(nodes, is_open=has_reported and not head.has_monitor)


def _with_config(
    nodes: list[Mapping[str, float]], config: Mapping[str, Any], present: Mapping[str, int]
) -> Capacity:
    types = dict(config["available_node_types"])
    types.pop(config.get("head_node_type"), None)
    # As in Ray's schema: a node type has the cluster's limit by default, and a cluster the limit 2.
    limit = config.get("max_workers", 2)
    return Capacity(
        nodes,
        [
            NodeType(
                name, kind.get("resources", {}), max(0, kind.get("max_workers", limit) - present.get(name, 0))
            )
            for name, kind in types.items()
        ],
        most_new=max(0, limit - sum(present.get(name, 0) for name in types)),
    )


def cluster_status() -> GetClusterStatusReply | None:
    """Nodes, demands and what the autoscaler does about them; None: the head does not answer."""
    try:
        return ray_private.cluster_status(STATUS_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        logger.warning("cannot query the state of the autoscaler: %s", error)
        return None


def _query_head(alive: Sequence[Mapping[str, Any]]) -> HeadAutoscaler:
    heads = [node["NodeID"] for node in alive if HEAD_RESOURCE in node["Resources"]]
    context = ray.get_runtime_context()
    port = context.gcs_address.rpartition(":")[2]
    if not heads or heads[0] == context.get_node_id():
        return local_autoscaler(port)
    on_head = NodeAffinitySchedulingStrategy(heads[0], soft=False)
    answer = ray.remote(num_cpus=0)(local_autoscaler).options(scheduling_strategy=on_head).remote(port)
    try:
        return ray.get(answer, timeout=TASK_TIMEOUT_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("cannot query the head for what the cluster may scale to: %s", error)
        return HeadAutoscaler(has_monitor=False, config=None)


def local_autoscaler(gcs_port: str) -> HeadAutoscaler:
    """The autoscaler on this machine that serves the cluster with this GCS port."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        is_monitor = any(word.endswith("/monitor.py") for word in words)
        if is_monitor and flags.get("--gcs-address", "").rpartition(":")[2] == gcs_port:
            return HeadAutoscaler(has_monitor=True, config=_read(flags.get("--autoscaling-config")))
    return HeadAutoscaler(has_monitor=False, config=None)


def _read(path: str | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    try:
        return yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, yaml.YAMLError) as error:
        logger.warning("cannot read what the cluster may scale to: %s", error)
        return None


def reserve_resources(request: Request) -> PlacementGroup:
    """Reserve resources for a request, until this driver ends; the autoscaler adds nodes for it."""
    return placement_group([dict(request.worker)] * request.workers, strategy="PACK")


def wait_for_nodes(
    request: Request, capacity: Capacity, *, timeout_s: float, say: Callable[[str], None], remedy: str
) -> None:
    """Wait until the workers of one trial can start, and report the reason for the wait.

    Args:
        say: called with a line of text when the reason changes, and every half minute.
        remedy: the nearest setting that needs no further nodes.

    Raises:
        ConfigError: the time is over, or the autoscaler says that it has no node of that kind.
    """
    group = reserve_resources(request)
    is_placed = group.ready()
    started = reported_at = time.monotonic()
    reported = ""
    try:
        while not ray.wait([is_placed], timeout=POLL_S)[0]:
            now = time.monotonic()
            status = cluster_status()
            why = why_waiting(status, request, capacity)
            if now - started > timeout_s:
                raise ConfigError(
                    f"{request} could not start within {timeout_s / 60:g} min: {why}; raise --wait-minutes, or ask "
                    f"for less ({remedy})"
                )
            infeasible = [] if status is None else status.autoscaling_state.infeasible_gang_resource_requests
            is_infeasible = any(each.details.startswith(group.id.hex()) for each in infeasible)
            if capacity.is_open and now - started > INFEASIBLE_AFTER_S and is_infeasible:
                raise ConfigError(
                    f"{request}: the autoscaler has no such nodes and may not add any; the present nodes have "
                    f"{_totals(capacity)}; {remedy}"
                )
            if why != reported or now - reported_at > REPORT_S:
                say(f"waiting for {request}, {now - started:.0f} s of {timeout_s / 60:g} min: {why}")
                reported, reported_at = why, now
        if reported:
            say(f"{request}: resources available after {time.monotonic() - started:.0f} s")
    finally:
        remove_placement_group(group)


def why_waiting(status: GetClusterStatusReply | None, request: Request, capacity: Capacity) -> str:
    """Why a request has to wait."""
    if status is None:
        return "the cluster does not say why"
    state = status.autoscaling_state
    if state.failed_instance_requests:
        failed = state.failed_instance_requests[-1]
        return f"{failed.ray_node_type_name} is not available: {failed.reason}"
    starting = Counter[str]()
    for pending in state.pending_instance_requests:
        starting[pending.ray_node_type_name] += pending.count
    for node in state.pending_instances:
        starting[node.ray_node_type_name] += 1
    if starting:
        return ", ".join(f"{count} x {name} starting" for name, count in starting.items())
    present = Capacity([node["Resources"] for node in ray.nodes() if node["Alive"]])
    if present.slots(request.worker) >= request.workers:
        return "all resources are in use"
    return "no node has been requested yet" if capacity.scales else f"the nodes have {_totals(capacity)}"


def _totals(capacity: Capacity) -> str:
    return f"{capacity.now('GPU'):g} GPUs and {capacity.now('CPU'):g} CPUs"
