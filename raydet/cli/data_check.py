"""`raydet data check`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from raydet.check.findings import DEFAULT_TOLERANCE
from raydet.cli.options import DEFAULT_RECIPE, SetOption, adjusted, interruptible, output_directory
from raydet.errors import EXIT_DATA

JSON, PAGE = "check.json", "check.html"


def check(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="The data set, as for `raydet train --data`.")],
    output: Annotated[
        Path | None,
        typer.Option(help=f"Directory for {JSON} and {PAGE}; default: runs/data_check/<name of the set>."),
    ] = None,
    sets: SetOption = None,
    workers: Annotated[
        int,
        typer.Option(
            min=0, help="Number of reader processes; 0: read in this process. The result is the same."
        ),
    ] = 0,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.1,
            help="Displacement up to which modalities count as aligned, as a fraction of the longer side.",
        ),
    ] = DEFAULT_TOLERANCE,
    align: Annotated[
        bool, typer.Option("--align/--no-align", help="Estimate the alignment, which takes most of the time.")
    ] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
) -> None:
    """Check every image of a data set: pairs, alignment, boxes or masks, duplicates, leaks between the splits, values.

    Exit code 3 if there are errors. --set data.split... checks another split, --set data.classes=[...] names
    classes, --set task.size_bins_px=[...] other sizes.
    """
    from raydet.check.image_record import as_json
    from raydet.check.images import worst_cases
    from raydet.check.page import render
    from raydet.check.run import check_source, settings_of
    from raydet.check.summary import summary_lines
    from raydet.config import DetectionTask
    from raydet.data.build import open_source
    from raydet.recipes import recipe

    experiment = adjusted(recipe(DEFAULT_RECIPE), data=spec, sets=sets, on_bad="skip", any_task=True)
    source = open_source(experiment.data, on_bad="skip")
    directory = output_directory(output or Path("runs", "data_check", _name_of(spec)))
    task = experiment.task if isinstance(experiment.task, DetectionTask) else DetectionTask()
    settings = settings_of(experiment.data, task, tolerance=tolerance, align=align)
    with (
        interruptible("the same command restarts"),
        typer.progressbar(length=len(source), label="checking", hidden=not sys.stderr.isatty()) as bar,
    ):
        found = check_source(
            source, experiment.data.split, settings, workers=workers, on_image=lambda: bar.update(1)
        )
    for line in summary_lines(found):
        typer.echo(line)
    tree = as_json(found, settings, experiment.data.source.model_dump(mode="json"))
    (directory / JSON).write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")
    page = render(found, settings, list(worst_cases(found, source)), title=f"Data check of {spec}")
    (directory / PAGE).write_text(page, encoding="utf-8")
    typer.echo(f"written: {directory / PAGE}, {directory / JSON}")
    if found.count("error") or (strict and found.count("warning")):
        raise typer.Exit(EXIT_DATA)


def _name_of(spec: str) -> str:
    """A directory name: the last part of the path, or the kind of the source.

    >>> _name_of("coco:/data/flir/annotations.json"), _name_of("synthetic")
    ('flir', 'synthetic')
    """
    path = Path(spec.partition(":")[2] or spec)
    name = path.parent.name if path.suffix else path.name
    return re.sub(r"[^\w.-]", "_", name).strip(".") or "set"
