"""`raydet report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    study: Annotated[Path, typer.Argument(help="A study's directory, `<storage>/<study>`.")],
    output: Annotated[
        Path | None, typer.Option(help="Directory for the files; default: `report` in the study's.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resampled sets of pictures.")] = 200,
) -> None:
    """What a study has found: one HTML page, figures and tables."""
    from raydet.report.write import write_report

    written = write_report(study.absolute(), output=output and output.absolute(), resamples=resamples)
    for sentence in written.conclusions:
        typer.echo(f"- {sentence}")
    typer.echo(str(written.page))
