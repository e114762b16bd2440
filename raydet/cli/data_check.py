"""`raydet data check`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.check.findings import DEFAULT_TOLERANCE
from raydet.cli.options import DEFAULT_RECIPE, SetOption, adjusted, interruptible, output_directory
from raydet.errors import EXIT_DATA

if TYPE_CHECKING:
    from raydet.check.examine import Settings
    from raydet.check.gather import Gathered
    from raydet.data.sources.base import Source

JSON, PAGE = "check.json", "check.html"


def check(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="The set, as for `raydet train --data`.")],
    output: Annotated[
        Path | None,
        typer.Option(help=f"Directory for {JSON} and {PAGE}; default: runs/data_check/ and the set's name."),
    ] = None,
    sets: SetOption = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read; 0 reads in this one. The result is the same.")
    ] = 0,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.1,
            help="Displacement up to which modalities are aligned, as part of the longer side.",
        ),
    ] = DEFAULT_TOLERANCE,
    align: Annotated[
        bool, typer.Option("--align/--no-align", help="Estimate alignment: most of the time of a check.")
    ] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
) -> None:
    """Look at every image of a set: pairs, alignment, boxes, duplicates, leaks between the splits, values.

    Exit code 3 where there are errors. --set data.split... checks another split, --set data.classes=[...] names
    classes, --set evaluate.size_bins_px=[...] other sizes.
    """
    from raydet.check.image_record import as_json
    from raydet.check.run import check_source, settings_of
    from raydet.check.summary import summary_lines
    from raydet.data.build import open_source
    from raydet.recipes import recipe

    experiment = adjusted(
        recipe(DEFAULT_RECIPE), backbone=None, data=spec, epochs=None, sets=sets, on_bad="skip"
    )
    source = open_source(experiment.data, on_bad="skip")
    directory = output_directory(output or Path("runs", "data_check", _name_of(spec)))
    settings = settings_of(experiment.data, experiment.evaluate, tolerance=tolerance, align=align)
    with (
        interruptible("the same command begins again"),
        typer.progressbar(length=len(source), label="checking", hidden=not _is_terminal()) as bar,
    ):
        found = check_source(
            source, experiment.data.split, settings, workers=workers, on_image=lambda: bar.update(1)
        )
    for line in summary_lines(found):
        typer.echo(line)
    tree = as_json(found, settings, experiment.data.source.model_dump(mode="json"))
    (directory / JSON).write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")
    (directory / PAGE).write_text(_page(found, source, spec, settings), encoding="utf-8")
    typer.echo(f"written: {directory / PAGE}, {directory / JSON}")
    if found.count("error") or (strict and found.count("warning")):
        raise typer.Exit(EXIT_DATA)


def _page(found: Gathered, source: Source, spec: str, settings: Settings) -> str:
    from raydet.check.images import worst_cases
    from raydet.check.page import render

    return render(found, settings, list(worst_cases(found, source)), title=f"Data check of {spec}")


def _name_of(spec: str) -> str:
    """A directory name: the last part of the path, or the kind of the source.

    >>> _name_of("coco:/data/flir/annotations.json"), _name_of("synthetic")
    ('flir', 'synthetic')
    """
    path = Path(spec.partition(":")[2] or spec)
    name = path.parent.name if path.suffix else path.name
    return re.sub(r"[^\w.-]", "_", name).strip(".") or "set"


def _is_terminal() -> bool:
    return sys.stderr.isatty()
