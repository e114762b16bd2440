"""`raydet bench anomaly`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import AsJsonOption, interruptible

if TYPE_CHECKING:
    from raydet.bench.anomaly import AnomalyReport


def anomaly(
    pixels: Annotated[int, typer.Option(min=1000, help="Pixels of the pooled protocol.")] = 10_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats per engine.")] = 3,
    as_json: AsJsonOption = False,
) -> None:
    """Time AUROC, AP and FPR95 of random pixels against scikit-learn, in both protocols."""
    from raydet.bench.anomaly import IMAGE_PIXELS, bench_anomaly

    with interruptible():
        reports = [
            bench_anomaly("pooled", pixels=pixels, repeats=repeats),
            bench_anomaly("per image", pixels=min(pixels, IMAGE_PIXELS), repeats=repeats),
        ]
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports]))
        return
    for report in reports:
        typer.echo("\n".join(_lines(report)))


def _lines(report: AnomalyReport) -> Iterator[str]:
    yield (
        f"{report.protocol}: {report.pixels:,} pixels; median of {report.repeats}, metrics differ by at most "
        f"{report.difference:.1e}"
    )
    for engine, seconds in report.seconds.items():
        yield f"{engine:12} {seconds:8.3f} s   {report.added_bytes[engine] / 2**20:6.0f} MiB added"
    yield f"ratio        {report.ratio:8.1f}     {report.ratio_low:.1f} to {report.ratio_high:.1f}"
