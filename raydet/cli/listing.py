"""`raydet recipes` and `raydet spaces`."""

from __future__ import annotations

import typer


def recipes() -> None:
    """List the recipes."""
    from raydet.recipes import RECIPES

    for name, make in RECIPES.items():
        experiment = make()
        typer.echo(
            f"{name:16}  {experiment.model.backbone.label:8}  canvas {experiment.data.canvas_hw}  "
            f"{experiment.train.epochs} epochs, batch {experiment.train.global_batch}"
        )


def spaces() -> None:
    """List the studies, with the trials that they take on the default recipe, per seed."""
    from raydet.cli.options import DEFAULT_RECIPE
    from raydet.recipes import recipe
    from raydet.tune.journal import Events
    from raydet.tune.phases import all_cells, num_undecided_cells
    from raydet.tune.spaces import load_space, space_names, space_summary

    for name in space_names():
        study, nothing = load_space(name, recipe(DEFAULT_RECIPE), {}), Events([])
        num_trials = len(all_cells(study, nothing)) + num_undecided_cells(study, nothing)
        typer.echo(f"{name:16} {num_trials:3} trials  {space_summary(name)}")
