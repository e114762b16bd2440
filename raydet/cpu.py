"""What the CPU of this machine offers: cores for threads, and bf16. Needs neither torch nor Ray."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from raydet.config import TrainConfig
from raydet.errors import ConfigError

CPU_INFO = Path("/proc/cpuinfo")
GPU_DRIVER = Path("/dev/nvidiactl")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Of a container: microseconds of CPU time per period of so many, or `max` for no limit (cgroup version 2)."""
OLD_CPU_LIMIT = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
"""The same in version 1, where a quota of -1 is no limit."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""As Linux names the instructions of x86 (Intel from Cooper Lake, AMD from Zen 4) and, the last, of ARM."""


def num_cores() -> int:
    """CPU cores that this process may use: the machine's, less what its affinity or its container's limit withholds."""
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


def threads_per_process(asked: int | None, *, processes: int, default: int) -> int:
    """Threads for each of several processes that share this machine's cores.

    Args:
        asked: for by the user; None: `default`, or fewer where there are fewer cores.
        processes: on this machine.
        default: PyTorch's own choice.

    Raises:
        ConfigError: more threads are asked for than there are cores.
    """
    most = max(1, num_cores() // processes)
    if asked is not None and asked > most:
        raise ConfigError(
            f"--cpus-per-worker must be at most {most} for {processes} workers on {num_cores()} cores, got {asked}"
        )
    return asked or min(default, most)


def thread_share(cpus: int, *, declared: float) -> int:
    """Threads for a worker that holds some of the CPUs that its Ray node declares: as large a part of the real cores.

    >>> thread_share(8, declared=1e6)  # a node started with a --num-cpus far beyond what it has
    1
    """
    return max(1, min(cpus, int(cpus * num_cores() / max(declared, 1))))


def cpu_name() -> str:
    """As the machine calls its processor."""
    found = re.search(r"^model name\s*: (.+)$", _cpu_info(), re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Whether matrix products in bf16 have instructions of their own; True where the system does not tell.

    Without them PyTorch computes them all the same, in loops that take minutes for a step of seconds.
    """
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", _cpu_info(), re.MULTILINE)
    return flags is None or bool(BF16_FLAGS & set(flags.group(1).split()))


def refuse_slow_bf16(train: TrainConfig, *, use_gpu: bool | None = False) -> None:
    """Refuse to train in bf16 on this machine's CPU where that has no instructions for it.

    Args:
        use_gpu: whether a GPU trains instead; None: if this machine has one.

    Raises:
        ConfigError: it has none, and `train.emulate_bf16` does not insist.
    """
    is_on_cpu = not (GPU_DRIVER.exists() if use_gpu is None else use_gpu)
    if train.precision == "bf16" and is_on_cpu and not train.emulate_bf16 and not has_bf16():
        raise ConfigError(
            f"train.precision=bf16 expected a CPU with bf16 instructions (AVX-512 BF16 or AMX), got {cpu_name()}, "
            "where a step takes minutes; use fp32, or insist with --set train.emulate_bf16=true"
        )


def _cpu_info() -> str:
    try:
        return CPU_INFO.read_text()
    except OSError:  # only Linux has it
        return ""
