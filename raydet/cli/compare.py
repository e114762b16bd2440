"""`raydet compare`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import AsJsonOption

if TYPE_CHECKING:
    from raydet.stats.comparison import Comparison


def compare(
    a: Annotated[
        Path, typer.Argument(help="A run's directory; repeats `<run>_seed<n>` next to it are included.")
    ],
    b: Annotated[Path, typer.Argument(help="Directory of another run.")],
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the images.")] = 1000,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare runs even if their settings differ.")
    ] = False,
    as_json: AsJsonOption = False,
) -> None:
    """Test whether one detector is better than another, or the difference is noise of images and seeds."""
    from raydet.report.compare import compare_arms, compare_sequences, compared_metric, open_arm

    arms = open_arm(a.absolute()), open_arm(b.absolute())
    found = compare_arms(*arms, count=resamples, is_forced=anyway)
    by_sequence = compare_sequences(*arms)
    if as_json:
        names = {"a": [str(run) for run in arms[0].runs], "b": [str(run) for run in arms[1].runs]}
        content = {**names, **asdict(found), "difference": found.difference, "verdict": found.verdict}
        if by_sequence is not None:
            content["by_sequence"] = asdict(by_sequence)
        typer.echo(json.dumps(content))
        return
    metric = compared_metric(arms[0].experiment.task)
    for label, arm, mean in (("A", arms[0], found.mean_a), ("B", arms[1], found.mean_b)):
        runs = f"{len(arm.runs)} {'run' if len(arm.runs) == 1 else 'runs'}"
        typer.echo(f"{label}  {metric.label} {metric.text(mean)}  {arm.name}, {runs}")
    typer.echo(_in_words(found))
    if by_sequence is not None:
        typer.echo(str(by_sequence))


def _in_words(found: Comparison) -> str:
    difference = f"A - B {found.difference:+.4f}"
    if found.num_groups < 2:
        return f"{difference}: unknown: the noise of the images cannot be estimated from one group of images"
    if found.low is None or found.high is None or found.sd_seeds is None or found.p_value is None:
        return f"{difference}: unknown: the noise of training cannot be estimated from one run per side; run --seeds 3"
    interval = f"{difference}, 95 % interval {found.low:+.4f} to {found.high:+.4f}, p {found.p_value:.2g}"
    noise = f"noise: {found.sd_seeds:.4f} per seed, {found.sd_images:.4f} from the images ({found.num_groups} groups)"
    return f"{interval}; {noise}\n{found.verdict}{_advice(found)}"


def _advice(found: Comparison) -> str:
    if found.verdict != "not distinguishable":
        return ""
    if found.seeds_needed is None:
        return ": even 100 seeds would not detect a difference of this size; more images may"
    return f": a difference of this size would need about {found.seeds_needed} seeds per side"
