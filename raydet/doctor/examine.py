"""All checks of the doctor, in order; each finding is yielded at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from raydet.doctor import judge
from raydet.doctor.facts import CUDA_ANSWER_S, NodeFacts, gather
from raydet.doctor.finding import Finding
from raydet.doctor.nodes import NoAnswer, Nodes, ThisMachine, answered
from raydet.doctor.ranks import START_S, free_port, run_ranks
from raydet.doctor.storage import check_storage
from raydet.doctor.tracking import check_tracking
from raydet.errors import ConfigError

FACTS_ANSWER_S = CUDA_ANSWER_S + 30


def examine(*, address: str | None, storage: str, tracking_uri: str | None) -> Iterator[Finding]:
    """Run all checks.

    Args:
        address: the Ray head, as in RAY_ADDRESS; None: examine this machine alone.
        storage: a directory or a URI.
        tracking_uri: see `raydet.doctor.tracking.check_tracking`.
    """
    yield from check_tracking(tracking_uri)
    with ExitStack() as stack:
        nodes: Nodes = ThisMachine()
        if address is None:
            text = "no cluster is set (RAY_ADDRESS): commands start their own Ray on this machine"
            yield Finding("ray", "ok", text)
        elif importlib.util.find_spec("ray") is None:
            yield Finding("ray", "failure", "it is not installed", f"install ray>={judge.FLOORS['ray']}")
        else:
            try:
                found, nodes = _join(address, stack)
            except ConfigError as error:
                found = [Finding("ray", "failure", str(error))]
            yield from found
        yield from _examine_nodes(nodes)
        yield from check_storage(storage, nodes)


def _join(address: str, stack: ExitStack) -> tuple[list[Finding], Nodes]:
    from raydet.doctor.cluster import joined
    from raydet.launch.head import find_head

    head = find_head(address)
    nodes = stack.enter_context(joined())
    size = f"{len(nodes.names)} nodes, {nodes.cpus} CPUs, {sum(nodes.gpus.values())} GPUs"
    findings = [Finding("ray", "ok", f"Ray {head.ray_version} at {head.address}: {size}")]
    if not head.is_open:
        return [*findings, Finding("token", "ok", f"{head.address}: the head requires a token")], nodes
    is_loopback = head.address.startswith("127.")
    text = f"{head.address}: anyone who reaches it may run programs on all nodes"
    remedy = "start the cluster with RAY_AUTH_MODE=token, see `ray get-auth-token`"
    return [*findings, Finding("token", "warning" if is_loopback else "failure", text, remedy)], nodes


def _examine_nodes(nodes: Nodes) -> Iterator[Finding]:
    answers = nodes.ask(gather, dict.fromkeys(nodes.names, ()), timeout_s=FACTS_ANSWER_S)
    for name, answer in answers.items():
        if isinstance(answer, NoAnswer):
            remedy = "install raydet in the image of the nodes, or submit with --working-dir"
            is_missing = "No module named 'raydet" in answer.reason
            yield Finding("nodes", "failure", f"{name}: {answer.reason}", remedy if is_missing else "")
    facts = answered(answers)
    for name, known in facts.items():
        yield from judge.versions(name, known)
        yield judge.cpu(name, known)
        yield judge.gpus(name, known, None if nodes.gpus is None else nodes.gpus[name])
        yield from judge.driver(name, known)
        yield judge.shared_memory(name, known)
        yield judge.disk(name, known.temporary)
    yield from judge.same_versions(facts)
    for name, clock in nodes.clocks().items():
        yield judge.clock(name, clock)
    yield from _examine_collective(nodes, facts)


def _examine_collective(nodes: Nodes, facts: Mapping[str, NodeFacts]) -> Iterator[Finding]:
    """Sum over all GPUs, with one rank per working GPU."""
    devices = {
        name: [f"cuda:{index}" for index in range(len(known.cuda.devices))]
        for name, known in facts.items()
        if known.cuda.devices and not known.cuda.error
    }
    if not devices:
        return
    first = next(iter(devices))
    total = sum(map(len, devices.values()))
    port = nodes.ask(free_port, {first: ()}, timeout_s=FACTS_ANSWER_S)[first]
    if isinstance(port, NoAnswer):
        yield judge.collective(total, len(devices), None, [f"{first}: {port.reason}"])
        return
    url = f"tcp://{nodes.address(first)}:{port}"
    arguments, rank = {}, 0
    for name, own in devices.items():
        arguments[name] = (own, rank, total, url, "nccl")
        rank += len(own)
    answers = nodes.ask(run_ranks, arguments, timeout_s=2 * START_S + 60)
    errors = [
        f"{name}: {answer.reason if isinstance(answer, NoAnswer) else answer}"
        for name, answer in answers.items()
        if answer
    ]
    yield judge.collective(total, len(devices), facts[first].cuda.nccl, errors)
