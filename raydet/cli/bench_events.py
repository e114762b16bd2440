"""`raydet bench events`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import AsJsonOption, interruptible

if TYPE_CHECKING:
    from raydet.bench.events import EventsReport


def events(
    num_events: Annotated[int, typer.Option("--events", min=2, help="Events of the window.")] = 5_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats per implementation.")] = 7,
    as_json: AsJsonOption = False,
) -> None:
    """Time the stacked histogram of an event window of 720 x 1280 pixels against a plain implementation."""
    from raydet.bench.events import bench_events

    with interruptible():
        reports = [
            bench_events(num_events=num_events, halving=halving, repeats=repeats) for halving in (True, False)
        ]
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports]))
        return
    for report in reports:
        typer.echo("\n".join(_lines(report)))


def _lines(report: EventsReport) -> Iterator[str]:
    size = "halved to 360 x 640" if report.halving else "720 x 1280"
    yield (
        f"{size}: {report.events:,} events; median of {report.repeats}, {report.cells_that_differ} cells differ "
        "(events at the edge of a bin)"
    )
    for engine, rate in report.events_per_s.items():
        yield f"{engine:8} {report.seconds[engine]:8.4f} s   {rate / 1e6:7.1f} million events/s"
    yield f"ratio    {report.ratio:8.1f}     {report.ratio_low:.1f} to {report.ratio_high:.1f}"
