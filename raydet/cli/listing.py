"""`raydet recipes` and `raydet spaces`."""

from __future__ import annotations

from typing import Annotated

import typer

from raydet.cli.options import (
    BackboneOption,
    DataOption,
    EpochsOption,
    RecipeOption,
    adjusted,
    starting_experiment,
)
from raydet.errors import RaydetError


def recipes() -> None:
    """List the recipes."""
    from raydet.recipes import RECIPES

    for name, make in RECIPES.items():
        experiment = make()
        typer.echo(
            f"{name:16}  {experiment.model.backbone.label:8}  canvas {experiment.data.canvas_hw}  "
            f"{experiment.train.epochs} epochs, batch {experiment.train.global_batch}"
        )


def spaces(
    recipe: RecipeOption = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    epochs: EpochsOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per cell.")] = 3,
    tflops: Annotated[
        float, typer.Option(min=0.001, help="What your GPU sustains in training, 10^12 operations a second.")
    ] = 30.0,
) -> None:
    """List the studies with what they cost on your data: trials, and hours of one GPU."""
    from raydet.cli.spaces import load_space, space_names, space_summary
    from raydet.tune.cost import study_cost

    base = adjusted(starting_experiment(recipe, None), backbone=backbone, data=data, epochs=epochs, sets=None)
    for name in space_names():
        try:
            cost = study_cost(load_space(name, base, {}), num_seeds=seeds)
        except RaydetError as error:
            typer.echo(f"{name:18} not for this: {error}")
            continue
        hours = f"{cost.hours(tflops):.3g}"
        typer.echo(f"{name:18} {cost.num_trials:4} trials {hours:>7} h  {space_summary(name)}")
    typer.echo(
        f"{base.name}, {seeds} seeds per cell, {base.train.epochs} epochs of the {base.data.source.kind} data; hours "
        f"of one GPU at {tflops:g} TFLOP/s sustained, waiting for data not counted"
    )
