"""`raydet bench checkpoint`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli import options
from raydet.cli.options import adjusted, interruptible, starting_experiment

if TYPE_CHECKING:
    from raydet.bench.checkpoint import CheckpointStall


def checkpoint(
    recipe: options.RecipeOption = None,
    config: options.ConfigOption = None,
    backbone: options.BackboneOption = None,
    sets: options.SetOption = None,
    directory: Annotated[
        Path, typer.Option(help="A directory on the disk to measure; left unchanged.")
    ] = Path(),
    repeats: Annotated[int, typer.Option(min=1, help="Timed checkpoints.")] = 5,
    use_gpu: options.DeviceOption = None,
    as_json: options.AsJsonOption = False,
) -> None:
    """Measure how long training waits for a checkpoint."""
    experiment = adjusted(starting_experiment(recipe, config), backbone=backbone, sets=sets)
    from raydet.bench.checkpoint import checkpoint_stall
    from raydet.parallel.collectives import select_device

    device = select_device(use_gpu)
    with interruptible():
        found = checkpoint_stall(experiment, directory=directory, repeats=repeats, device=device)
    typer.echo(json.dumps(asdict(found)) if as_json else _text(found))


def _text(found: CheckpointStall) -> str:
    return (
        f"{found.name} on {found.device}: {found.tensors} tensors, {found.bytes / 1e9:.2f} GB, "
        f"median of {found.repeats}\n"
        f"training waits      {found.blocked_s:8.3f} s   {found.stall_over_copy:.2f} x the bare copy to the host\n"
        f"  bare copy         {found.copy_s:8.3f} s\n"
        f"  first checkpoint  {found.first_blocked_s:8.3f} s   allocates host memory\n"
        f"on the disk after   {found.committed_s:8.3f} s   {found.write_gb_per_s:.2f} GB/s\n"
        f"verify and load     {found.load_s:8.3f} s"
    )
