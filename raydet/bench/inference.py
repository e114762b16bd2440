"""Inference speed of finished runs, side by side.

Only the detector is timed, from a batch on the device to detections: no disk, drawing or conversion to source pixels.
The runs alternate, and the device is synchronized before the clock is read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from raydet.bench.machine import device_name, synchronize
from raydet.data.loader import EvalLoader
from raydet.engine.open_run import TrainedRun, open_trained
from raydet.plan.flops import forward_flops
from raydet.structures import Batch


@dataclass(frozen=True, slots=True)
class Speed:
    """Images per second of one run in fp32: median, slowest and fastest round of `images` images."""

    run: str
    images_per_s: float
    slowest: float
    fastest: float
    of_first: float
    """Median ratio to the first run's speed in the same round."""
    images: int
    canvas_hw: tuple[int, int]
    parameters: int
    gflops: float
    """Forward pass of one image, see `raydet.plan.flops`."""


@dataclass(frozen=True, slots=True)
class InferenceReport:
    device: str
    torch_version: str
    batch: int
    rounds: int
    speeds: list[Speed]


def bench_inference(
    run_dirs: Sequence[Path],
    *,
    batch_size: int = 1,
    num_images: int = 32,
    rounds: int = 5,
    device: torch.device | None = None,
) -> InferenceReport:
    """Time the detectors of finished runs on their own validation images.

    Args:
        num_images: most images per run; some are repeated to fill the last batch.
        rounds: rounds that count, after one for warm-up.

    Raises:
        ConfigError: a directory is not a run, or has no checkpoint.
        DataError: an image cannot be read.
    """
    device = device or torch.device("cpu")
    runs = [open_trained(run_dir, device=device) for run_dir in run_dirs]
    batches = [_batches(run, batch_size, num_images) for run in runs]
    turns: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 1):
        for run, loaded, mine in zip(runs, batches, turns, strict=True):
            elapsed_s = _pass_s(run, loaded)
            if turn:
                mine.append(len(loaded) * batch_size / elapsed_s)
    return InferenceReport(
        device=device_name(device),
        torch_version=torch.__version__,
        batch=batch_size,
        rounds=rounds,
        speeds=[
            Speed(
                run=str(run.run_dir),
                images_per_s=statistics.median(mine),
                slowest=min(mine),
                fastest=max(mine),
                of_first=statistics.median(a / b for a, b in zip(mine, turns[0], strict=True)),
                images=len(loaded) * batch_size,
                canvas_hw=run.experiment.data.canvas_hw,
                parameters=sum(parameter.numel() for parameter in run.model.parameters()),
                gflops=forward_flops(run.experiment)["total"] / 1e9,
            )
            for run, loaded, mine in zip(runs, batches, turns, strict=True)
        ],
    )


def _batches(run: TrainedRun, batch_size: int, num_images: int) -> list[Batch]:
    indices = run.indices[:num_images]
    missing = -len(indices) % batch_size
    indices = [*indices, *(indices * missing)[:missing]]
    loader = EvalLoader(run.source, indices, data=run.experiment.data, batch_size=batch_size)
    return [batch.to(run.device) for batch, _ in loader]


@torch.no_grad()
def _pass_s(run: TrainedRun, batches: Sequence[Batch]) -> float:
    synchronize(run.device)
    started = time.perf_counter()
    for batch in batches:
        run.model(batch)
    synchronize(run.device)
    return time.perf_counter() - started
