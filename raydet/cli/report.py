"""`raydet report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import TrackingOption

if TYPE_CHECKING:
    from raydet.report.write import Report


def report(
    study: Annotated[Path, typer.Argument(help="A study's directory, `<storage>/<study>`.")],
    output: Annotated[
        Path | None, typer.Option(help="Output directory; default: `report` in the study's directory.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the images.")] = 200,
    tracking_uri: TrackingOption = None,
) -> None:
    """Write the report of a study, an HTML page with figures and tables, to its directory and its tracker."""
    from raydet.report.write import write_report

    written = write_report(study.absolute(), output=output and output.absolute(), resamples=resamples)
    for sentence in written.conclusions:
        typer.echo(f"- {sentence}")
    typer.echo(str(written.page))
    log_report(written, study.absolute(), tracking_uri)


def log_report(written: Report, study: Path, tracking_uri: str | None) -> None:
    """Log a report to the tracker that the study has used."""
    from raydet.track.runs import existing_tracker, track_report

    tracker = existing_tracker(tracking_uri, directory=study.parent, experiment=study.name)
    if tracker is not None:
        track_report(
            tracker, written.phase, written.files, root=written.page.parent, conclusions=written.conclusions
        )
