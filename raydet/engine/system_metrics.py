"""Load of the machine, under the names that MLflow's UI shows on its system-metrics page."""

from __future__ import annotations

import psutil
import torch


def system_metrics(device: torch.device) -> dict[str, float]:
    """CPU and memory of this node since the last call, and peak GPU memory since the start, in percent and MB."""
    memory = psutil.virtual_memory()
    metrics = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    if device.type == "cuda":
        metrics["system/gpu_peak_memory_megabytes"] = torch.cuda.max_memory_allocated(device) / 1e6
    return metrics
