"""`raydet compare`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raydet.stats.comparison import Comparison


def compare(
    a: Annotated[
        Path, typer.Argument(help="A run's directory; its repeats `<run>_seed<n>` beside it count, too.")
    ],
    b: Annotated[Path, typer.Argument(help="Another one's.")],
    resamples: Annotated[int, typer.Option(min=100, help="Resampled sets of images.")] = 1000,
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare runs of unlike settings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Is one detector better than another, or is it noise of images and seeds?"""
    from raydet.report.compare import compare_arms, open_arm

    arms = open_arm(a.absolute()), open_arm(b.absolute())
    found = compare_arms(*arms, count=resamples, is_forced=anyway)
    if as_json:
        names = {"a": [str(run) for run in arms[0].runs], "b": [str(run) for run in arms[1].runs]}
        content = {**names, **asdict(found), "difference": found.difference, "verdict": found.verdict}
        typer.echo(json.dumps(content))
        return
    for label, arm, mean in (("A", arms[0], found.mean_a), ("B", arms[1], found.mean_b)):
        typer.echo(f"{label}  mAP {mean:.4f}  {arm.name}, {_runs(len(arm.runs))}")
    typer.echo(_in_words(found))


def _in_words(found: Comparison) -> str:
    difference = f"A - B {found.difference:+.4f}"
    if found.num_groups < 2:
        return f"{difference}: unknown, one group of images says nothing about the noise of the set"
    if found.low is None or found.high is None or found.sd_seeds is None or found.p_value is None:
        return f"{difference}: unknown, one run on a side says nothing about the noise of training; run --seeds 3"
    interval = f"{difference}, 95 % interval {found.low:+.4f} to {found.high:+.4f}, p {found.p_value:.2g}"
    noise = f"noise: {found.sd_seeds:.4f} per seed, {found.sd_images:.4f} of the images ({found.num_groups} groups)"
    return f"{interval}; {noise}\n{found.verdict}{_advice(found)}"


def _advice(found: Comparison) -> str:
    if found.verdict != "not distinguishable":
        return ""
    if found.seeds_needed is None:
        return ": not even 100 seeds would find a difference of this size, or it takes more images"
    return f": a difference of this size would take about {found.seeds_needed} seeds on either side"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
