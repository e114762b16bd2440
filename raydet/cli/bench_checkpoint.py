"""`raydet bench checkpoint`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from raydet.cli.options import (
    BackboneOption,
    ConfigOption,
    RecipeOption,
    SetOption,
    adjusted,
    interruptible,
    starting_experiment,
)


def checkpoint(
    recipe: RecipeOption = None,
    config: ConfigOption = None,
    backbone: BackboneOption = None,
    sets: SetOption = None,
    directory: Annotated[Path, typer.Option(help="On the disk to measure; left as it was.")] = Path(),
    repeats: Annotated[int, typer.Option(min=1, help="Checkpoints that count.")] = 5,
    use_gpu: Annotated[
        bool | None, typer.Option("--gpu/--cpu", help="Default: the GPU where there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure how long a checkpoint keeps the training waiting."""
    experiment = adjusted(
        starting_experiment(recipe, config), backbone=backbone, data=None, epochs=None, sets=sets
    )
    from raydet.bench.checkpoint import checkpoint_stall
    from raydet.parallel.collectives import wanted_device

    device = wanted_device(use_gpu)
    with interruptible():
        found = checkpoint_stall(experiment, directory=directory, repeats=repeats, device=device)
    typer.echo(json.dumps(found) if as_json else _text(found))


def _text(found: dict[str, Any]) -> str:
    return "\n".join(
        (
            f"{found['name']} on {found['device']}: {found['tensors']} tensors, {found['bytes'] / 1e9:.2f} GB, "
            f"median of {found['repeats']}",
            f"training waits      {found['blocked_s']:8.3f} s   "
            f"{found['stall_over_copy']:.2f} x the bare copy to the host",
            f"  bare copy         {found['copy_s']:8.3f} s",
            f"  the first time    {found['first_blocked_s']:8.3f} s   allocates the host memory",
            f"on the disk after   {found['committed_s']:8.3f} s   {found['write_gb_per_s']:.2f} GB/s",
            f"verify and load     {found['load_s']:8.3f} s",
        )
    )
