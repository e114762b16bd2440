"""`raydet robustness`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli import options
from raydet.cli.options import describe_run, interruptible, open_run, output_directory, parse_choices

if TYPE_CHECKING:
    from raydet.report.robustness import Robustness


def robustness(
    run: options.RunArgument,
    data: options.OtherDataOption = None,
    severities: Annotated[
        int, typer.Option(min=1, max=5, help="Number of severities, from the mildest.")
    ] = 5,
    kinds: Annotated[
        str,
        typer.Option(
            help="noise, blur, shift, absent, ..., separated by commas; or all that apply to a modality."
        ),
    ] = "all",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the corruptions.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Directory for robustness.json and .csv; default: the run's.")
    ] = None,
    use_gpu: options.DeviceOption = None,
    as_json: options.AsJsonOption = False,
) -> None:
    """Measure AP as one modality degrades: noise, blur, dead rows, lost events, a shift, or its absence."""
    from raydet.data.corruptions import STRENGTHS
    from raydet.report.robustness import ABSENT, CurveKind, measure_robustness

    known: list[CurveKind] = [*STRENGTHS, ABSENT]
    chosen = parse_choices(kinds, known, "--kinds")
    opened = open_run(run, data=data, use_gpu=use_gpu)
    directory = output_directory(output or opened.run_dir)
    with interruptible("nothing was written"):
        found = measure_robustness(
            opened,
            severities=severities,
            kinds=chosen,
            seed=seed,
            tell=lambda line: typer.echo(line, err=True),
        )
    about = describe_run(opened)
    found.write(directory, about)
    lines = [opened.experiment.data.simulation_note, *_lines(found)]
    typer.echo(json.dumps(about | found.as_json()) if as_json else "\n".join(filter(None, lines)))


def _lines(found: Robustness) -> Iterator[str]:
    heads = " ".join(f"{severity:>6}" for severity in range(found.severities + 1))
    yield f"{f'{found.metric} at severity':24} {heads} {'area':>6} {'left':>5}"
    for curve in found.curves:
        scores = " ".join(f"{score:6.3f}" for score in curve.scores)
        area = "" if curve.area is None else f"{curve.area:.3f}"
        left = "" if curve.relative is None else f"{curve.relative:.0%}"
        yield f"{curve.modality:8} {curve.kind:15} {scores:{len(heads)}} {area:>6} {left:>5}".rstrip()
