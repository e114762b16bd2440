"""From what was gathered to findings: pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raydet.doctor.facts import NodeFacts, Space
from raydet.doctor.finding import Finding, Level

MIB, GIB = 2**20, 2**30

FLOORS = {"ray": "2.55", "torch": "2.11", "mlflow": "3.11"}
"""The oldest releases that raydet works with, as in pyproject.toml."""
LEAST_SHARED_BYTES, GOOD_SHARED_BYTES = 64 * MIB, GIB
"""64 MiB are what container engines give where nobody asks: too little for two GPUs under NCCL."""
LEAST_DISK_BYTES, GOOD_DISK_BYTES = 2 * GIB, 20 * GIB
FULLEST_DISK = 0.95
"""Ray puts nothing more on a disk that is fuller."""
GOOD_SKEW_S, MOST_SKEW_S = 2.0, 300.0
"""Object storage refuses what was signed a quarter of an hour off; long before, times in logs mislead."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How far another clock is ahead of ours, and how well that is known, in seconds."""

    ahead_s: float
    error_s: float


def versions(named: str, facts: NodeFacts) -> list[Finding]:
    """Whether all packages are there, and new enough.

    Args:
        named: the machine, for messages.
    """
    findings = []
    for package, floor in FLOORS.items():
        version = facts.versions.get(package)
        if version is None:
            findings.append(
                Finding(
                    "versions",
                    "warning" if package == "mlflow" else "failure",
                    f"{named}: {package} is not installed",
                    f"install {package}>={floor}" + (", or track nothing" if package == "mlflow" else ""),
                )
            )
        elif release(version) < release(floor):
            findings.append(
                Finding("versions", "failure", f"{named}: {package} {version}", f"install {package}>={floor}")
            )
    if not findings:
        have = ", ".join(f"{package} {version}" for package, version in facts.versions.items())
        findings.append(Finding("versions", "ok", f"{named}: {have}"))
    return findings


def same_versions(nodes: Mapping[str, NodeFacts]) -> list[Finding]:
    """Whether all nodes have the same of everything."""
    findings = []
    for package in ("python", *FLOORS):
        by_version: dict[str, list[str]] = {}
        for named, facts in nodes.items():
            by_version.setdefault(facts.versions.get(package, "none"), []).append(named)
        if len(by_version) > 1:
            listed = ", ".join(f"{version} on {' '.join(names)}" for version, names in by_version.items())
            level: Level = "warning" if package == "mlflow" else "failure"
            remedy = "start all nodes from one image"
            findings.append(Finding("versions", level, f"nodes differ in {package}: {listed}", remedy))
    return findings


def cpu(named: str, facts: NodeFacts) -> Finding:
    """What trains where there is no GPU, and whether it could in bf16."""
    bf16 = "bf16" if facts.has_bf16 else "no bf16 instructions: training in bf16 on this CPU is refused"
    return Finding("cpu", "ok", f"{named}: {facts.cores} cores of {facts.cpu}, {bf16}")


def gpus(named: str, facts: NodeFacts, declared: int | None) -> Finding:
    """Whether torch can use the GPUs that are there.

    Args:
        declared: how many Ray takes the node to have; None: Ray was not asked.
    """
    cuda = facts.cuda
    if not facts.has_driver and not declared:
        return Finding("gpus", "ok", f"{named}: none, training runs on CPUs")
    if not facts.has_driver:
        remedy = "give the container its GPUs (`--gpus all`, or nvidia.com/gpu), or start the node with --num-gpus=0"
        return Finding("gpus", "failure", f"{named}: Ray counts {declared}, there is no driver", remedy)
    if cuda.built_for is None:
        remedy = "install torch for CUDA"
        reason = cuda.error or "torch is built for CPUs"
        return Finding("gpus", "failure", f"{named}: there is a driver, but {reason}", remedy)
    if cuda.error or not cuda.devices:
        remedy = "see the line on the driver, and nvidia-smi on that machine"
        return Finding("gpus", "failure", f"{named}: {cuda.error or 'torch sees none'}", remedy)
    counts: dict[str, int] = {}
    for name in cuda.devices:
        counts[name] = counts.get(name, 0) + 1
    listed = ", ".join(f"{count} x {name}" for name, count in counts.items())
    if declared is not None and declared != len(cuda.devices):
        remedy = "restart the node, with --num-gpus where it should have fewer"
        level: Level = "failure" if declared > len(cuda.devices) else "warning"
        return Finding("gpus", level, f"{named}: Ray counts {declared}, torch sees {listed}", remedy)
    return Finding("gpus", "ok", f"{named}: {listed}")


def driver(named: str, facts: NodeFacts) -> list[Finding]:
    """Whether the driver is new enough for the CUDA that torch was built for. Nothing where there is no driver."""
    cuda = facts.cuda
    if not facts.has_driver or cuda.built_for is None:
        return []
    if cuda.driver_takes is None:
        remedy = "mount the driver's libraries (the NVIDIA container runtime does)"
        return [Finding("driver", "failure", f"{named}: libcuda.so.1 cannot be used", remedy)]
    takes = (cuda.driver_takes // 1000, cuda.driver_takes % 1000 // 10)
    wanted = release(cuda.built_for)
    text = f"{named}: the driver takes CUDA {takes[0]}.{takes[1]}, torch is built for {cuda.built_for}"
    if takes[0] < wanted[0]:
        remedy = f"update the driver, or install torch for CUDA {takes[0]}"
        return [Finding("driver", "failure", text, remedy)]
    if takes < wanted:  # works within a major release, but for what is new in it
        return [Finding("driver", "warning", text, "update the driver when something is missing")]
    return [Finding("driver", "ok", text)]


def shared_memory(named: str, facts: NodeFacts) -> Finding:
    """Whether /dev/shm holds what workers, NCCL and Ray's object store put there."""
    space = facts.shared_memory
    if space is None:
        return Finding("shared memory", "warning", f"{named}: there is no /dev/shm", "use Linux for training")
    remedy = "start the container with --shm-size=8g, or mount an emptyDir of medium Memory at /dev/shm"
    level, remedy = _by_bytes(space, LEAST_SHARED_BYTES, GOOD_SHARED_BYTES, remedy)
    return Finding("shared memory", level, _space_text(named, space), remedy)


def disk(named: str, space: Space) -> Finding:
    """Whether a file system has room."""
    remedy = "free some, or name another place"
    level, remedy = _by_bytes(space, LEAST_DISK_BYTES, GOOD_DISK_BYTES, remedy)
    text = _space_text(named, space)
    if space.total and 1 - space.free / space.total > FULLEST_DISK:
        return Finding(
            "disk", "failure", text, f"free some: beyond {FULLEST_DISK:.0%} Ray puts nothing there"
        )
    return Finding("disk", level, text, remedy)


def clock(named: str, clock: Clock) -> Finding:
    """Whether a node's clock agrees with ours."""
    off_s = max(0.0, abs(clock.ahead_s) - clock.error_s)
    text = f"{named}: {clock.ahead_s:+.2f} s against this machine, known to {clock.error_s:.2f} s"
    if off_s <= GOOD_SKEW_S:
        return Finding("clock", "ok", text)
    level: Level = "failure" if off_s > MOST_SKEW_S else "warning"
    return Finding("clock", level, text, "let a time service (chrony) set the clocks of both")


def collective(devices: int, nodes: int, nccl: str | None, errors: Sequence[str]) -> Finding:
    """Whether all GPUs can add up a number together."""
    text = f"{devices} GPUs of {nodes} nodes, NCCL {nccl or 'unknown'}"
    if errors:
        remedy = (
            "NCCL_DEBUG=INFO tells more; between nodes, NCCL_SOCKET_IFNAME names the network, all ports open"
        )
        return Finding("nccl", "failure", f"{text}: {errors[0]}", remedy)
    return Finding("nccl", "ok", f"{text}: a sum over all of them is right")


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with.

    >>> release("2.11.0+cu128") >= release("2.11")
    True
    """
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _by_bytes(space: Space, least: int, good: int, remedy: str) -> tuple[Level, str]:
    if space.free < least:
        return "failure", remedy
    return ("warning", remedy) if space.free < good else ("ok", "")


def _space_text(named: str, space: Space) -> str:
    return f"{named}: {space.free / GIB:,.1f} of {space.total / GIB:,.1f} GiB free in {space.path}"
