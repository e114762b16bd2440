"""`raydet bench loader`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli import options
from raydet.cli.options import adjusted, interruptible, starting_experiment

if TYPE_CHECKING:
    from raydet.bench.loader import LoaderReport


def loader(
    recipe: options.RecipeOption = None,
    data: options.DataOption = None,
    backbone: options.BackboneOption = None,
    sets: options.SetOption = None,
    images: Annotated[int, typer.Option(min=4, help="Number of images.")] = 64,
    height: Annotated[int, typer.Option(min=32, help="Height of the images after resizing.")] = 512,
    width: Annotated[int, typer.Option(min=32, help="Width of the images after resizing.")] = 640,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per storage format.")] = 5,
    processes: Annotated[int, typer.Option(min=1, help="Loader processes in the end-to-end benchmark.")] = 2,
    memory_processes: Annotated[
        int, typer.Option(min=1, help="Loader processes in the memory benchmark.")
    ] = 4,
    memory_epochs: Annotated[int, typer.Option(min=2, help="Epochs of the memory benchmark.")] = 20,
    step: Annotated[bool, typer.Option("--step/--no-step", help="Also time a training step.")] = True,
    as_json: options.AsJsonOption = False,
) -> None:
    """Time reading and loading, relative to one array per image, and track the memory of loader processes."""
    experiment = adjusted(
        starting_experiment(recipe, None), backbone=backbone, data=data, sets=sets, any_task=True
    )
    from raydet.bench.loader import bench_loader

    with interruptible():
        report = bench_loader(
            experiment,
            num_images=images,
            size_hw=(height, width),
            rounds=rounds,
            loader_processes=processes,
            memory_processes=memory_processes,
            memory_epochs=memory_epochs,
            with_step=step,
        )
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"memory_growth": report.memory_growth}))
    else:
        typer.echo("\n".join(lines_of(report)))


def lines_of(report: LoaderReport) -> Iterator[str]:
    events = ", events simulated" if report.is_event_simulated else ""
    height, width = report.size_hw
    yield (
        f"{report.images} images of 5 x {height} x {width}{events}; one core, median of {report.rounds} rounds, "
        "processor time"
    )
    for way in report.ways:
        yield (
            f"{way.name:22} {way.images_per_s:8,.0f} images/s   x{way.of_seeds:.2f}   "
            f"{way.bytes_per_image / 1e3:8,.0f} kB per image"
        )
    for batch in report.batches:
        share = "" if batch.step_share is None else f", {batch.step_share:.1%} of a training step"
        yield (
            f"batches, {batch.encoding:4}, {batch.loader_processes} processes {batch.images_per_s:8.1f} images/s{share}"
        )
    memory, processes = report.memory_bytes, report.memory_processes
    yield (
        f"memory of {processes} loader processes: {memory[-1] / 2**20:,.0f} MiB after {len(memory)} "
        f"epochs, {report.memory_growth:+.1%} since the second; {memory[-1] / processes / 2**20:,.0f} MiB each"
    )
