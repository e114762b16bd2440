"""The CPU of this machine: cores for threads, and bf16 instructions. Needs neither torch nor Ray."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from raydet.config import TrainConfig
from raydet.errors import ConfigError

CPU_INFO = Path("/proc/cpuinfo")
GPU_DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))
"""Of NVIDIA, of Windows in its Linux subsystem, and of AMD."""
EMULATE_BF16 = "RAYDET_EMULATE_BF16"
"""Environment variable that allows bf16 on a CPU without instructions for it, on this machine, whatever the run."""
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""CPU limit of a container: microseconds of CPU time and of a period, or `max` for no limit (cgroup version 2)."""
OLD_CPU_LIMIT = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
"""CPU limit in cgroup version 1: quota and period; a quota of -1 is no limit."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Linux's names of the instructions of x86 (Intel from Cooper Lake, AMD from Zen 4) and, the last, of ARM."""


def num_cores() -> int:
    """CPU cores that this process may use, by its affinity and the limit of its container."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    try:
        if CPU_LIMIT.exists():
            quota, period = CPU_LIMIT.read_text().split()
        else:
            quota, period = (path.read_text() for path in OLD_CPU_LIMIT)
        share = int(quota) // int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return cores
    return cores if int(quota) < 0 else max(1, min(cores, share))


def threads_per_process(requested: int | None, *, processes: int, default: int) -> int:
    """Threads for each of several processes that share this machine's cores.

    Args:
        requested: by the user; None: `default`, or fewer if there are fewer cores.
        processes: on this machine.
        default: PyTorch's own choice.

    Raises:
        ConfigError: more threads are requested than there are cores.
    """
    most = max(1, num_cores() // processes)
    if requested is not None and requested > most:
        raise ConfigError(
            f"--cpus-per-worker must be at most {most} with {processes} worker(s) on {num_cores()} cores, "
            f"got {requested}"
        )
    return requested or min(default, most)


def thread_share(cpus: int, *, declared: float) -> int:
    """Threads of a worker with `cpus` of the CPUs that its Ray node declares: the same share of the real cores.

    >>> thread_share(8, declared=1e6)  # a node started with a --num-cpus far above its cores
    1
    """
    return max(1, min(cpus, int(cpus * num_cores() / max(declared, 1))))


def cpu_name() -> str:
    """Model name of the processor."""
    found = re.search(r"^model name\s*: (.+)$", _cpu_info(), re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Whether the CPU has instructions for matrix products in bf16; True if unknown.

    Without them PyTorch emulates bf16, on many CPUs in loops that take minutes for a step of seconds.
    """
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", _cpu_info(), re.MULTILINE)
    return flags is None or bool(BF16_FLAGS & set(flags.group(1).split()))


def has_gpu() -> bool:
    """Whether this machine has a GPU driver. Does not use torch: a process that has initialized CUDA must not fork."""
    return any(path.exists() for path in GPU_DRIVERS)


def refuse_slow_bf16(train: TrainConfig, *, use_gpu: bool | None = False) -> None:
    """Refuse to train in bf16 on this machine's CPU if it has no instructions for it.

    Args:
        use_gpu: whether to train on a GPU instead; None: if this machine has one.

    Raises:
        ConfigError: it has none, and `EMULATE_BF16` is not set.
    """
    is_on_cpu = not (has_gpu() if use_gpu is None else use_gpu)
    if train.precision == "bf16" and is_on_cpu and not os.environ.get(EMULATE_BF16) and not has_bf16():
        raise ConfigError(
            "train.precision=bf16 expected a CPU with bf16 instructions (AVX-512 BF16, AMX, or ARM's), got "
            f"{cpu_name()}, which has none and may take minutes for a step; use fp32, or set {EMULATE_BF16}=1 in the "
            "environment to train nevertheless"
        )


def _cpu_info() -> str:
    try:
        return CPU_INFO.read_text()
    except OSError:  # only Linux has it
        return ""
