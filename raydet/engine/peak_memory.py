"""The most memory that a run has needed at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
FORGET_PEAK = "5"
"""Written to `clear_refs`, it sets the peak of the resident memory back to what is resident now (Linux)."""


def watch_peak_memory(device: torch.device, *, process: Path = PROCESS) -> Callable[[], int | None]:
    """Begin to watch; what is returned tells the peak since then, in bytes.

    On a GPU that is what tensors have taken there. On a CPU it is the resident memory of this process, interpreter and
    libraries included and loader processes left out; None where the peak cannot be set back (it would be that of
    whatever the process has done before, as Ray's processes outlive their runs).
    """
    if device.type == "cuda":
        torch.cuda.init()  # else there is nothing to set back, which is an error
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    try:
        (process / "clear_refs").write_text(FORGET_PEAK)
    except OSError:
        return lambda: None
    return lambda: _peak_resident(process)


def _peak_resident(process: Path) -> int | None:
    for line in (process / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # in KiB
    return None
