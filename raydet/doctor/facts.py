"""What is so on one machine: gathered there, judged elsewhere. Needs neither torch nor Ray."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from raydet.cpu import cpu_name, has_bf16, num_cores

CUDA_ANSWER_S = 90.0
"""For a process that imports torch and wakes all GPUs, from a cold disk."""
NAMED_PACKAGES = ("raydet", "ray", "torch", "mlflow")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Space:
    """Of a file system, in bytes."""

    path: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Cuda:
    """What torch says of the GPUs, see `raydet.doctor.cuda`."""

    built_for: str | None
    """The CUDA release that torch was built for; None: torch is for CPUs."""
    driver_takes: int | None
    """The newest CUDA release that the driver takes, 1000 x major + 10 x minor; None: there is no driver."""
    devices: tuple[str, ...]
    nccl: str | None
    error: str
    """Why there are no devices; empty: there are, or none were wanted."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One machine, or one node of a cluster."""

    host: str
    versions: Mapping[str, str]
    """Of Python and of the packages that are installed."""
    cpu: str
    """As the machine calls it."""
    cores: int
    has_bf16: bool
    """The CPU has instructions for matrix products in bf16."""
    has_driver: bool
    cuda: Cuda
    shared_memory: Space | None
    """None: this system has none."""
    temporary: Space
    """Where Ray and torch put their files."""


def gather() -> NodeFacts:
    """The machine that this process runs on."""
    return NodeFacts(
        host=socket.gethostname(),
        versions=_versions(),
        cpu=cpu_name(),
        cores=num_cores(),
        has_bf16=has_bf16(),
        has_driver=Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists(),
        cuda=ask_cuda(),
        shared_memory=space(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
        temporary=space(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())),
    )


def space(path: Path) -> Space:
    """Of the file system that a path lies on, or would."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    return Space(str(path), usage.total, usage.free)


def ask_cuda() -> Cuda:
    """Asked in a process of its own: a broken driver may hang, or end whoever asks."""
    nothing = Cuda(built_for=None, driver_takes=None, devices=(), nccl=None, error="")
    command = [sys.executable, "-m", "raydet.doctor.cuda"]
    try:
        asked = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=CUDA_ANSWER_S
        )
        said = json.loads(asked.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return _with_error(nothing, f"torch has not answered for {CUDA_ANSWER_S:.0f} s")
    except (IndexError, ValueError):
        return _with_error(nothing, f"torch ended with {asked.returncode}: {_last_line(asked.stderr)}")
    return Cuda(**said | {"devices": tuple(said["devices"])})


def child_environment() -> dict[str, str]:
    """For a process that sees the modules of this one, and all GPUs that Ray has on this node."""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    visible = _visible_to_ray()
    if visible is None:
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    return environment


def _visible_to_ray() -> str | None:
    """A task that has asked for no GPU sees none; the raylet above it sees the node's."""
    if "RAY_RAYLET_PID" not in os.environ:
        return os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        raylet = psutil.Process(int(os.environ["RAY_RAYLET_PID"]))
        return raylet.environ().get("CUDA_VISIBLE_DEVICES")
    except psutil.Error:
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in NAMED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _with_error(cuda: Cuda, error: str) -> Cuda:
    return Cuda(cuda.built_for, cuda.driver_takes, cuda.devices, cuda.nccl, error)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
