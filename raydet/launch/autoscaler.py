"""What the cluster has and may scale to, asked of Ray; and waiting for nodes, saying why.

Ray has no common place where the limits of an autoscaler stand. The launcher's clusters (`ray up`) have them in a file
that the monitor on the head is started with. Where there is no such file (KubeRay: the autoscaler is a container of its
own) we put the request and listen to what the autoscaler says of it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
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

DEFAULT_PATIENCE_S = 1800.0
"""For nodes of a cloud to come, where nobody says otherwise."""
TASK_TIMEOUT_S = 15.0
STATUS_TIMEOUT_S = 5
POLL_S = 1.0
REPORT_S = 30.0
"""Between two lines that say the same."""
VERDICT_S = 15.0
"""For the autoscaler to call a request infeasible: three of its rounds, as nodes of others may be leaving."""

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class HeadAutoscaler:
    """What the head knows of the autoscaler."""

    has_monitor: bool
    """It runs on the head; else nowhere, or elsewhere."""
    config: Mapping[str, Any] | None
    """Its file; None: it has none, and adds no nodes."""


def current_capacity() -> Capacity:
    """Nodes of the connected cluster, and those that may join."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node["Resources"] for node in alive]
    if IS_LOCAL:
        return Capacity(nodes)
    status = cluster_status()
    head = _ask_head(alive)
    if head.config is not None:
        return _with_config(nodes, head.config, _nodes_by_type(status))
    has_reported = status is not None and status.autoscaling_state.autoscaler_state_version > 0
    return Capacity(nodes, is_open=has_reported and not head.has_monitor)


def _with_config(
    nodes: list[Mapping[str, float]], config: Mapping[str, Any], there: Mapping[str, int]
) -> Capacity:
    types = {
        name: kind
        for name, kind in config["available_node_types"].items()
        if name != config.get("head_node_type")
    }
    # As in Ray's schema: a type may have up to the cluster's limit, and the limit of a cluster is 2 unless it says so.
    limit = config.get("max_workers", 2)
    return Capacity(
        nodes,
        [
            NodeType(
                name, kind.get("resources", {}), max(0, kind.get("max_workers", limit) - there.get(name, 0))
            )
            for name, kind in types.items()
        ],
        most_new=max(0, limit - sum(there.get(name, 0) for name in types)),
    )


def cluster_status() -> GetClusterStatusReply | None:
    """Nodes, demands and what the autoscaler does about them; None: the cluster does not say."""
    try:
        return ray_private.cluster_status(STATUS_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        logger.warning("cannot ask for the state of the autoscaler: %s", error)
        return None


def _nodes_by_type(status: GetClusterStatusReply | None) -> Counter[str]:
    nodes = [] if status is None else status.cluster_resource_state.node_states
    return Counter(node.ray_node_type_name for node in nodes if node.status != NodeStatus.DEAD)


def _ask_head(alive: list[dict[str, Any]]) -> HeadAutoscaler:
    heads = [node["NodeID"] for node in alive if HEAD_RESOURCE in node["Resources"]]
    context = ray.get_runtime_context()
    port = context.gcs_address.rpartition(":")[2]
    if not heads or heads[0] == context.get_node_id():
        return autoscaler_here(port)
    there = NodeAffinitySchedulingStrategy(heads[0], soft=False)
    answer = ray.remote(num_cpus=0)(autoscaler_here).options(scheduling_strategy=there).remote(port)
    try:
        found: HeadAutoscaler = ray.get(answer, timeout=TASK_TIMEOUT_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("cannot ask the head what the cluster may scale to: %s", error)
        return HeadAutoscaler(has_monitor=False, config=None)
    return found


def autoscaler_here(gcs_port: str) -> HeadAutoscaler:
    """The autoscaler among the processes of this machine that serves the cluster with this port."""
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
        config: Mapping[str, Any] = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, yaml.YAMLError) as error:
        logger.warning("cannot read what the cluster may scale to: %s", error)
        return None
    return config


def ask_for(request: Request) -> PlacementGroup:
    """Room for a request, set aside as soon as there is: the autoscaler adds nodes for it. Ends with this driver."""
    return placement_group([dict(request.worker)] * request.workers, strategy="PACK")


def await_nodes(
    request: Request,
    capacity: Capacity,
    *,
    patience_s: float,
    say: Callable[[str], None],
    remedy: str,
) -> None:
    """Wait until one trial's workers find a place, and say why that takes so long.

    Args:
        remedy: the nearest setting that needs no further nodes.

    Raises:
        ConfigError: no place was found within `patience_s`, or the autoscaler says that it has no node of that kind.
    """
    group = ask_for(request)
    place = group.ready()
    started = said_at = time.monotonic()
    told = ""
    try:
        while not ray.wait([place], timeout=POLL_S)[0]:
            now = time.monotonic()
            status = cluster_status()
            why = why_waiting(status, request, capacity)
            if now - started > patience_s:
                raise ConfigError(
                    f"{request} found no place within {patience_s / 60:g} min: {why}; raise --wait-minutes, or ask for "
                    f"less ({remedy})"
                )
            if capacity.is_open and now - started > VERDICT_S and _is_infeasible(status, group):
                raise ConfigError(
                    f"{request}: the autoscaler has no nodes for that, nor may it add them; the nodes that are there "
                    f"have {_have(capacity)}; {remedy}"
                )
            if why != told or now - said_at > REPORT_S:
                say(f"waiting for {request}, {now - started:.0f} s of {patience_s / 60:g} min: {why}")
                told, said_at = why, now
        if told:
            say(f"{request}: there is room, after {time.monotonic() - started:.0f} s")
    finally:
        remove_placement_group(group)


def why_waiting(status: GetClusterStatusReply | None, request: Request, capacity: Capacity) -> str:
    """What stands between a request and its place."""
    if status is None:
        return "the cluster does not say why"
    state = status.autoscaling_state
    if state.failed_instance_requests:
        failed = state.failed_instance_requests[-1]
        return f"{failed.ray_node_type_name} cannot be had: {failed.reason}"
    starting = Counter[str]()
    for asked in state.pending_instance_requests:
        starting[asked.ray_node_type_name] += asked.count
    for node in state.pending_instances:
        starting[node.ray_node_type_name] += 1
    if starting:
        return ", ".join(f"{count} x {name} starting" for name, count in starting.items())
    if Capacity([node["Resources"] for node in ray.nodes() if node["Alive"]]).places(request.worker) >= (
        request.workers
    ):
        return "all of it is in use"
    return "no node has been asked for yet" if capacity.scales else f"the nodes have {_have(capacity)}"


def _is_infeasible(status: GetClusterStatusReply | None, group: PlacementGroup) -> bool:
    requests = [] if status is None else status.autoscaling_state.infeasible_gang_resource_requests
    return any(request.details.startswith(group.id.hex()) for request in requests)


def _have(capacity: Capacity) -> str:
    return f"{capacity.now('GPU'):g} GPUs and {capacity.now('CPU'):g} CPUs"
