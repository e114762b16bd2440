"""What the machine can do at best: the yardstick for a step."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from raydet.config import Precision

REPEATS = 4


def matrix_peak(precision: Precision, device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product: the best of a few."""
    side = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(REPEATS):
        wait_for(device)
        started = time.perf_counter()
        a @ b
        wait_for(device)
        best_s = min(best_s, time.perf_counter() - started)
    return float(2 * side**3 / best_s)


def wait_for(device: torch.device) -> None:
    """Until everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_process_bytes() -> int:
    """The most memory that this process has had, from its start."""
    # Not getrusage: a process that another has started begins with that one's peak.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def device_name(device: torch.device) -> str:
    """For the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s)"
