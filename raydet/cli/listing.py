"""`raydet recipes` and `raydet spaces`."""

from __future__ import annotations

import typer


def recipes() -> None:
    """List the recipes."""
    from raydet.recipes import RECIPES

    for name, make in RECIPES.items():
        experiment = make()
        typer.echo(
            f"{name:16}  mit_{experiment.model.backbone.variant:4}  canvas {experiment.data.canvas_hw}  "
            f"{experiment.train.epochs} epochs, batch {experiment.train.global_batch}"
        )


def spaces() -> None:
    """List the studies."""
    from raydet.tune.spaces import space_names, space_summary

    for name in space_names():
        typer.echo(f"{name:16}  {space_summary(name)}")
