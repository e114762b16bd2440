"""`raydet bench evaluation`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import AsJsonOption, interruptible

if TYPE_CHECKING:
    from raydet.bench.evaluation import EvaluationReport


def evaluation(
    images: Annotated[int, typer.Option(min=1, help="Images of the random data set.")] = 5000,
    detections: Annotated[int, typer.Option(min=1, help="Detections per image.")] = 100,
    classes: Annotated[int, typer.Option(min=1, help="Object classes.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats per engine.")] = 3,
    as_json: AsJsonOption = False,
) -> None:
    """Time COCO metrics and match records of a random data set against pycocotools."""
    from raydet.bench.evaluation import SetSize, bench_evaluation

    with interruptible():
        report = bench_evaluation(SetSize(images, detections, classes), repeats=repeats)
    typer.echo(json.dumps(asdict(report)) if as_json else "\n".join(lines_of(report)))


def lines_of(report: EvaluationReport) -> Iterator[str]:
    size = report.size
    yield (
        f"{size.images} images x {size.detections} detections, {size.classes} classes; median of {report.repeats}, "
        f"numbers and records {'equal to the last bit' if report.is_equal else 'DIFFER'}"
    )
    for engine, seconds in report.seconds.items():
        added = report.peak_bytes[engine] - report.set_bytes
        yield f"{engine:11} {seconds:8.2f} s   {added / 2**30:6.2f} GiB on top of {report.set_bytes / 2**30:.2f} GiB"
    yield f"ratio       {report.ratio:8.1f}     {report.ratio_low:.1f} to {report.ratio_high:.1f}"
