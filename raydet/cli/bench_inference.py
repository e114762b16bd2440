"""`raydet bench inference`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import AsJsonOption, DeviceOption, interruptible

if TYPE_CHECKING:
    from raydet.bench.inference import InferenceReport


def inference(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of finished runs.")],
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 1,
    images: Annotated[int, typer.Option(min=1, help="Validation images per round, at most.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; the runs alternate.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's.")] = None,
    use_gpu: DeviceOption = None,
    as_json: AsJsonOption = False,
) -> None:
    """Time the detectors of finished runs: images/s, without reading and drawing."""
    import torch

    from raydet.bench.inference import bench_inference
    from raydet.parallel.collectives import select_device

    if threads is not None:
        torch.set_num_threads(threads)
    with interruptible():
        report = bench_inference(
            [run.absolute() for run in runs],
            batch_size=batch,
            num_images=images,
            rounds=rounds,
            device=select_device(use_gpu),
        )
    typer.echo(json.dumps(asdict(report)) if as_json else "\n".join(_lines(report)))


def _lines(report: InferenceReport) -> Iterator[str]:
    yield f"{report.device}, torch {report.torch_version}; fp32, batch {report.batch}, median of {report.rounds}"
    yield f"{'images/s':>9} {'slowest':>9} {'fastest':>9} {'of first':>8} {'GFLOP':>8} {'parameters':>12}"
    for speed in report.speeds:
        height, width = speed.canvas_hw
        yield (
            f"{speed.images_per_s:9.2f} {speed.slowest:9.2f} {speed.fastest:9.2f} {speed.of_first:8.2f} "
            f"{speed.gflops:8.2f} {speed.parameters:12,}  {speed.run}, {height} x {width}"
        )
