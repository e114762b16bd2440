"""From facts to findings: pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raydet.doctor.facts import NodeFacts, Space
from raydet.doctor.finding import Finding, Level

MIB, GIB = 2**20, 2**30

FLOORS = {"ray": "2.55", "torch": "2.11", "mlflow": "3.11"}
"""The oldest releases that raydet works with, as in pyproject.toml."""
LEAST_SHARED_BYTES, GOOD_SHARED_BYTES = 64 * MIB, GIB
"""Container engines give 64 MiB by default: too little for two GPUs under NCCL."""
LEAST_DISK_BYTES, GOOD_DISK_BYTES = 2 * GIB, 20 * GIB
FULLEST_DISK = 0.95
"""Ray stops writing to a disk that is fuller."""
GOOD_SKEW_S, MOST_SKEW_S = 2.0, 300.0
"""Object storage rejects signatures that are 15 minutes off; times in logs mislead long before."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How far another clock is ahead of ours, and the error of that estimate, in seconds."""

    ahead_s: float
    error_s: float


def versions(name: str, facts: NodeFacts) -> list[Finding]:
    """Whether all packages are installed, and new enough.

    Args:
        name: the machine, for messages.
    """
    findings = []
    for package, floor in FLOORS.items():
        version = facts.versions.get(package)
        if version is None:
            level: Level = "warning" if package == "mlflow" else "failure"
            remedy = f"install {package}>={floor}" + (", or track nothing" if package == "mlflow" else "")
            findings.append(Finding("versions", level, f"{name}: {package} is not installed", remedy))
        elif release(version) < release(floor):
            remedy = f"install {package}>={floor}"
            findings.append(Finding("versions", "failure", f"{name}: {package} {version}", remedy))
    if not findings:
        have = ", ".join(f"{package} {version}" for package, version in facts.versions.items())
        findings.append(Finding("versions", "ok", f"{name}: {have}"))
    return findings


def same_versions(nodes: Mapping[str, NodeFacts]) -> list[Finding]:
    """Whether all nodes have the same versions."""
    findings = []
    for package in ("python", *FLOORS):
        by_version: dict[str, list[str]] = {}
        for name, facts in nodes.items():
            by_version.setdefault(facts.versions.get(package, "none"), []).append(name)
        if len(by_version) > 1:
            listed = ", ".join(f"{version} on {' '.join(names)}" for version, names in by_version.items())
            level: Level = "warning" if package == "mlflow" else "failure"
            remedy = "start all nodes from one image"
            findings.append(Finding("versions", level, f"nodes differ in {package}: {listed}", remedy))
    return findings


def cpu(name: str, facts: NodeFacts) -> Finding:
    """The CPU, and whether it can train in bf16."""
    bf16 = "bf16" if facts.has_bf16 else "no bf16 instructions: training in bf16 on this CPU is refused"
    return Finding("cpu", "ok", f"{name}: {facts.cores} cores of {facts.cpu}, {bf16}")


def gpus(name: str, facts: NodeFacts, declared: int | None) -> Finding:
    """Whether torch can use the GPUs of a node.

    Args:
        declared: how many GPUs Ray counts on the node; None: without Ray.
    """
    cuda = facts.cuda
    if not facts.has_driver and not declared:
        return Finding("gpus", "ok", f"{name}: none, training runs on CPUs")
    if not facts.has_driver:
        remedy = "give the container its GPUs (`--gpus all`, or nvidia.com/gpu), or start the node with --num-gpus=0"
        return Finding("gpus", "failure", f"{name}: Ray counts {declared}, there is no driver", remedy)
    if cuda.built_for is None:
        remedy = "install torch for CUDA"
        reason = cuda.error or "torch is built for CPUs"
        return Finding("gpus", "failure", f"{name}: there is a driver, but {reason}", remedy)
    if cuda.error or not cuda.devices:
        remedy = "see the line on the driver, and nvidia-smi on that machine"
        return Finding("gpus", "failure", f"{name}: {cuda.error or 'torch sees none'}", remedy)
    listed = ", ".join(f"{count} x {device}" for device, count in Counter(cuda.devices).items())
    if declared is not None and declared != len(cuda.devices):
        remedy = "restart the node, with --num-gpus where it should have fewer"
        level: Level = "failure" if declared > len(cuda.devices) else "warning"
        return Finding("gpus", level, f"{name}: Ray counts {declared}, torch sees {listed}", remedy)
    return Finding("gpus", "ok", f"{name}: {listed}")


def driver(name: str, facts: NodeFacts) -> list[Finding]:
    """Whether the driver is new enough for the CUDA that torch was built for. Nothing where there is no driver."""
    cuda = facts.cuda
    if not facts.has_driver or cuda.built_for is None:
        return []
    if cuda.driver_takes is None:
        remedy = "mount the driver's libraries (the NVIDIA container runtime does)"
        return [Finding("driver", "failure", f"{name}: libcuda.so.1 cannot be used", remedy)]
    takes = (cuda.driver_takes // 1000, cuda.driver_takes % 1000 // 10)
    needed = release(cuda.built_for)
    text = f"{name}: the driver supports CUDA {takes[0]}.{takes[1]}, torch is built for {cuda.built_for}"
    if takes[0] < needed[0]:
        remedy = f"update the driver, or install torch for CUDA {takes[0]}"
        return [Finding("driver", "failure", text, remedy)]
    if takes < needed:  # works within a major release, except for its new features
        return [Finding("driver", "warning", text, "update the driver if a feature is missing")]
    return [Finding("driver", "ok", text)]


def shared_memory(name: str, facts: NodeFacts) -> Finding:
    """Whether /dev/shm holds what workers, NCCL and Ray's object store put there."""
    space = facts.shared_memory
    if space is None:
        return Finding("shared memory", "warning", f"{name}: there is no /dev/shm", "use Linux for training")
    remedy = "start the container with --shm-size=8g, or mount an emptyDir of medium Memory at /dev/shm"
    level, remedy = _by_bytes(space, LEAST_SHARED_BYTES, GOOD_SHARED_BYTES, remedy)
    return Finding("shared memory", level, _space_text(name, space), remedy)


def disk(name: str, space: Space) -> Finding:
    """Whether a file system has enough free space."""
    remedy = "free some space, or use another directory"
    level, remedy = _by_bytes(space, LEAST_DISK_BYTES, GOOD_DISK_BYTES, remedy)
    text = _space_text(name, space)
    if space.total and 1 - space.free / space.total > FULLEST_DISK:
        remedy = f"free some space: above {FULLEST_DISK:.0%} Ray writes nothing there"
        return Finding("disk", "failure", text, remedy)
    return Finding("disk", level, text, remedy)


def clock(name: str, clock: Clock) -> Finding:
    """Whether a node's clock agrees with ours."""
    off_s = max(0.0, abs(clock.ahead_s) - clock.error_s)
    text = f"{name}: {clock.ahead_s:+.2f} s against this machine, +/- {clock.error_s:.2f} s"
    if off_s <= GOOD_SKEW_S:
        return Finding("clock", "ok", text)
    level: Level = "failure" if off_s > MOST_SKEW_S else "warning"
    return Finding("clock", level, text, "synchronize both clocks with a time service (chrony)")


def collective(devices: int, nodes: int, nccl: str | None, errors: Sequence[str]) -> Finding:
    """Whether all GPUs can sum a tensor together."""
    text = f"{devices} GPUs of {nodes} nodes, NCCL {nccl or 'unknown'}"
    if errors:
        remedy = "NCCL_DEBUG=INFO shows more; between nodes, set NCCL_SOCKET_IFNAME and open all ports"
        return Finding("nccl", "failure", f"{text}: {errors[0]}", remedy)
    return Finding("nccl", "ok", f"{text}: a sum over all of them is right")


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> release("2.11.0+cu128") >= release("2.11")
    True
    """
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _by_bytes(space: Space, least: int, good: int, remedy: str) -> tuple[Level, str]:
    if space.free < least:
        return "failure", remedy
    return ("warning", remedy) if space.free < good else ("ok", "")


def _space_text(name: str, space: Space) -> str:
    return f"{name}: {space.free / GIB:,.1f} of {space.total / GIB:,.1f} GiB free in {space.path}"
