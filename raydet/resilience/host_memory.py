"""Memory use of the host: of the container if there is one, else of the machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
GIB = 2**30


def host_memory(cgroup: Path = CGROUP) -> tuple[int, int]:
    """Bytes in use and in total. Caches that the kernel would give up do not count as in use.

    Args:
        cgroup: directory of this process's cgroup, version 2 (`memory.max`) or 1.
    """
    machine = psutil.virtual_memory()
    for directory, limit, usage, prefix in (
        (cgroup, "memory.max", "memory.current", ""),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            total = int((directory / limit).read_text())  # "max": there is no limit
            used = int((directory / usage).read_text())
            stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if total < machine.total:
            caches = (int(stat.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
            return used - sum(caches), total
    return machine.total - machine.available, machine.total


def memory_of_this_process() -> int:
    """Resident bytes of this process and its loader processes."""
    own, total = psutil.Process(), 0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            total += int(process.memory_info().rss)
    return total
