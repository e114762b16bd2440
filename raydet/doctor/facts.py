"""Facts about one machine, gathered there and judged elsewhere. Needs neither torch nor Ray."""

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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from raydet.cpu import cpu_name, has_bf16, num_cores

CUDA_ANSWER_S = 90.0
"""How long a process may take to import torch and initialize all GPUs, from a cold disk."""
NAMED_PACKAGES = ("raydet", "ray", "torch", "mlflow")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Space:
    """Space of a file system, in bytes."""

    path: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Cuda:
    """What torch reports about the GPUs, see `raydet.doctor.cuda`."""

    built_for: str | None
    """The CUDA release that torch was built for; None: torch is for CPUs."""
    driver_takes: int | None
    """The newest CUDA release that the driver supports, 1000 x major + 10 x minor; None: there is no driver."""
    devices: tuple[str, ...]
    nccl: str | None
    error: str
    """Why there are no devices; empty: there are, or torch is for CPUs."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One machine, or one node of a cluster."""

    host: str
    versions: Mapping[str, str]
    """Versions of Python and of the installed packages."""
    cpu: str
    cores: int
    has_bf16: bool
    """Whether the CPU has instructions for matrix products in bf16."""
    has_driver: bool
    cuda: Cuda
    shared_memory: Space | None
    """None: this system has none."""
    temporary: Space
    """The file system for temporary files of Ray and torch."""


def gather() -> NodeFacts:
    """Facts about the machine that this process runs on."""
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
    """Space of the file system that a path is on, or would be."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    usage = shutil.disk_usage(existing)
    return Space(str(path), usage.total, usage.free)


def ask_cuda() -> Cuda:
    """What torch reports in a separate process: a broken driver may hang or crash it."""
    command = [sys.executable, "-m", "raydet.doctor.cuda"]
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=CUDA_ANSWER_S
        )
        report = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        error = f"torch has not answered for {CUDA_ANSWER_S:.0f} s"
    except (IndexError, ValueError):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        error = f"torch exited with {done.returncode}: {reason}"
    else:
        return Cuda(**report | {"devices": tuple(report["devices"])})
    return Cuda(built_for=None, driver_takes=None, devices=(), nccl=None, error=error)


def child_environment() -> dict[str, str]:
    """Environment of a process with the modules of this one, and all GPUs that Ray has on this node."""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    visible = _visible_to_ray()
    return environment if visible is None else environment | {"CUDA_VISIBLE_DEVICES": visible}


def _visible_to_ray() -> str | None:
    """CUDA_VISIBLE_DEVICES of the raylet: a task that requests no GPU sees none."""
    if "RAY_RAYLET_PID" not in os.environ:
        return os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        return psutil.Process(int(os.environ["RAY_RAYLET_PID"])).environ().get("CUDA_VISIBLE_DEVICES")
    except psutil.Error:
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in NAMED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
