"""The ranks of one machine in a sum over all GPUs: one process per GPU."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from raydet.doctor.collective import TIMEOUT_S
from raydet.doctor.facts import child_environment

START_S = 60.0
"""How long processes may take to import torch and initialize their GPUs."""


def free_port() -> int:
    """An unused port of this machine."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def run_ranks(devices: Sequence[str], first: int, world_size: int, url: str, backend: str) -> str:
    """Run the ranks from `first` on, one per device, until they exit.

    Args:
        devices: `cuda:0`, ...; or `cpu`.
        url: where rank 0 listens, tcp://HOST:PORT.

    Returns:
        What went wrong, on one line; empty: the sum was right.
    """
    base = [sys.executable, "-m", "raydet.doctor.collective"]
    processes = [
        subprocess.Popen(
            [*base, str(first + index), str(world_size), url, backend, device],
            env=child_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, device in enumerate(devices)
    ]
    deadline = time.monotonic() + START_S + TIMEOUT_S
    errors = []
    for index, process in enumerate(processes):
        try:
            _, output = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            errors.append(f"{devices[index]} has not answered for {START_S + TIMEOUT_S:.0f} s")
            continue
        if process.returncode:
            errors.append(f"{devices[index]}: {(output.strip().splitlines() or ['it was killed'])[-1]}")
    return "; ".join(errors)
