"""Properties of the machine: peak FLOP/s, memory, device name."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from raydet.config import Precision

REPEATS = 4


def matrix_peak(precision: Precision, device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product, the best of `REPEATS`."""
    side = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(REPEATS):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - started)
    return float(2 * side**3 / best_s)


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_process_bytes() -> int:
    """Peak memory of this process since its start."""
    # Not getrusage: a child process inherits its parent's peak.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s)"
