"""`raydet recipes` and `raydet spaces`; spaces by name: modules of `tune_spaces`, or Python files like them."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydet.cli import options
from raydet.cli.options import adjusted, starting_experiment
from raydet.errors import RaydetError, StudyError

if TYPE_CHECKING:
    from raydet.config import Experiment
    from raydet.tune.study import Study


def space_names() -> tuple[str, ...]:
    """Names that `--space` accepts."""
    import tune_spaces

    return tuple(sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__)))


def space_summary(name: str) -> str:
    """The first line of the docstring of a space."""
    return (importlib.import_module(f"tune_spaces.{name}").__doc__ or "").splitlines()[0]


def load_space(
    name: str,
    base: Experiment,
    overrides: Mapping[str, Any],
    *,
    chosen: Collection[str] = (),
    arms: Collection[str] | None = None,
) -> Study:
    """Build the study of a space, with its controls; see `raydet.tune.spaces.study_of`.

    Args:
        name: a module in `tune_spaces`, or the path of a Python file with a function `study` like theirs.

    Raises:
        StudyError: there is no such space.
        ConfigError: its file is not a space.
    """
    from raydet.tasks.code import load_module
    from raydet.tune.spaces import study_of

    if name.endswith(".py"):
        module = load_module(Path(name), function="study")
    elif name in space_names():
        module = importlib.import_module(f"tune_spaces.{name}")
    else:
        close = difflib.get_close_matches(name, space_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(space_names())}"
        raise StudyError(f"unknown space {name!r}; {hint}")
    return study_of(module.study, name, base, overrides, chosen=chosen, arms=arms)


def recipes() -> None:
    """List the recipes: backbone and its drop-path rate, fusion and flow, canvas, schedule.

    The published GAFF runs have no drop-path and the flow `fused`; `--set model.fusion.kind=gaff` on another recipe
    keeps that one's drop-path (0.1 with a MiT) and its flow (`rectified`). `gaff_as_published` has their settings.

    With optim.ema_decay, which no recipe sets and no published run had, the average starts with a lower decay:
    (1 + n) / (10 + n) after n updates, until that exceeds the setting; for 0.999 after 8990 updates.
    """
    from raydet.recipes import RECIPES

    for name, make in RECIPES.items():
        experiment = make()
        model, train = experiment.model, experiment.train
        stages = "".join(map(str, model.fusion_stages))
        typer.echo(
            f"{name:17}  {model.backbone.label:21}  drop-path {model.backbone.drop_path_rate:g}  "
            f"{model.fusion.kind} at {stages}, {model.flow}  canvas {experiment.data.canvas_hw}  "
            f"{train.epochs} epochs, batch {train.global_batch}"
        )


def spaces(
    recipe: options.RecipeOption = None,
    backbone: options.BackboneOption = None,
    data: options.DataOption = None,
    epochs: options.EpochsOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trials per cell.")] = 3,
    tflops: Annotated[
        float,
        typer.Option(
            min=0.001, help="Sustained rate of your GPU in training, in 10^12 operations per second."
        ),
    ] = 30.0,
) -> None:
    """List the studies with their cost on your data: trials and GPU-hours."""
    from raydet.tune.cost import study_cost

    base = adjusted(starting_experiment(recipe, None), backbone=backbone, data=data, epochs=epochs)
    for name in space_names():
        try:
            cost = study_cost(load_space(name, base, {}), num_seeds=seeds)
        except RaydetError as error:
            typer.echo(f"{name:18} not applicable: {error}")
            continue
        hours = f"{cost.hours(tflops):.3g}"
        typer.echo(f"{name:18} {cost.num_trials:4} trials {hours:>7} h  {space_summary(name)}")
    typer.echo(
        f"{base.name}, {seeds} seeds per cell, {base.train.epochs} epochs of the {base.data.source.kind} data; hours "
        f"of one GPU at {tflops:g} TFLOP/s sustained, without waiting for data"
    )
