"""`raydet evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raydet.cli import options
from raydet.cli.options import describe_run, interruptible, open_run, output_directory
from raydet.errors import ConfigError

if TYPE_CHECKING:
    from raydet.engine.evaluator import Scores
    from raydet.engine.open_run import TrainedRun


def evaluate(
    run: options.RunArgument,
    data: options.OtherDataOption = None,
    split: Annotated[
        Literal["train", "val", "test", "calibration"],
        typer.Option(help="Part of the run's own images; test and calibration as data.split divides them."),
    ] = "val",
    output: Annotated[Path | None, typer.Option(help="Also write the JSON object to this file.")] = None,
    use_gpu: options.DeviceOption = None,
    as_json: options.AsJsonOption = False,
) -> None:
    """Compute the metrics of a run's newest checkpoint; the run's own files stay unchanged."""
    if data is not None and split != "val":
        raise ConfigError("--split is a part of the run's own images; leave it or --data out")
    opened = open_run(run, data=data, use_gpu=use_gpu, split=split)
    if output is not None:
        output_directory(output.parent)
    from raydet.engine.open_run import evaluated

    with interruptible("nothing was written"):
        scores = evaluated(opened)
    found = {**describe_run(opened), **opened.task.results(opened.experiment)}
    found |= {"metrics": scores.metrics, "per_class": scores.per_class}
    if output is not None:
        output.write_text(json.dumps(found, indent=2) + "\n")
    lines = [opened.experiment.data.simulation_note, *_lines(opened, scores)]
    typer.echo(json.dumps(found) if as_json else "\n".join(filter(None, lines)))


def _lines(run: TrainedRun, scores: Scores) -> Iterator[str]:
    yield (
        f"{run.run_dir}, {run.checkpoint.name}: {len(run.indices)} images "
        f"({run.experiment.data.source.kind}), {', '.join(run.model.modalities)}"
    )
    classes = {name.replace("/", " "): value for name, value in scores.per_class.items()}
    for name, value in [*scores.metrics.items(), *classes.items()]:
        yield f"{name:20} " + (
            "undefined: nothing of it in these images" if value is None else f"{value:.4f}"
        )
