"""`raydet verify`: proofs on one's own machine."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import (
    BackboneOption,
    ConfigOption,
    DataOption,
    RecipeOption,
    SetOption,
    TrackingOption,
    adjusted,
    choices,
    interruptible,
    starting_experiment,
)
from raydet.errors import EXIT_OK, EXIT_TRIALS_FAILED, ConfigError

if TYPE_CHECKING:
    from raydet.verify.resume import Outcome

app = typer.Typer(
    name="verify",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Prove that nothing is lost.",
)


@app.callback()
def _group() -> None:
    """Prove that nothing is lost."""


@app.command()
def resume(
    recipe: RecipeOption = None,
    config: ConfigOption = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    sets: SetOption = None,
    steps: Annotated[int, typer.Option(help="Steps to train, rounded up to whole epochs.")] = 12,
    workers: Annotated[
        str,
        typer.Option(help="Processes on this machine, e.g. 2; or before and after each kill, e.g. 4,2,3."),
    ] = "1",
    phases: Annotated[
        str, typer.Option(help="Where to kill (SIGKILL), with commas, or all; see the output of `all`.")
    ] = "backward",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Kill a run and let it continue; compare losses, samples and weights with an undisturbed run."""
    from raydet.resilience.fault_injection import FAULT_PHASES
    from raydet.verify.resume import ResumeCheck

    experiment = adjusted(
        starting_experiment(recipe, config), backbone=backbone, data=data, epochs=None, sets=sets
    )
    wanted, counts = choices(phases, FAULT_PHASES, "--phases"), _workers(workers)
    with (
        interruptible("nothing is proven"),
        tempfile.TemporaryDirectory(prefix="raydet-verify-") as directory,
    ):
        check = ResumeCheck(experiment, steps=steps, workers=counts, directory=Path(directory))
        check.run_undisturbed()
        outcomes = []
        for phase in wanted:
            outcomes.append(check.run_killed(phase))
            if not as_json:
                typer.echo(_line(outcomes[-1]))
    is_proven = all(outcome.is_proof for outcome in outcomes)
    if as_json:
        typer.echo(json.dumps({"ok": is_proven, "outcomes": [asdict(outcome) for outcome in outcomes]}))
    else:
        typer.echo("nothing was lost" if is_proven else "SOMETHING WAS LOST")
    raise typer.Exit(EXIT_OK if is_proven else EXIT_TRIALS_FAILED)


@app.command()
def study(
    directory: Annotated[Path, typer.Argument(help="Of the study: `<storage>/<study>`.")],
    tracking_uri: TrackingOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compare a study's journal, summary, tracker and files: each trial once, every sample once."""
    from raydet.verify.study import check_study

    report = check_study(directory.absolute(), tracking_uri=tracking_uri)
    if as_json:
        typer.echo(json.dumps({"ok": not report.problems, **asdict(report)}))
    else:
        for problem in report.problems:
            typer.echo(f"BAD {problem}")
        typer.echo(report)
    raise typer.Exit(EXIT_TRIALS_FAILED if report.problems else EXIT_OK)


def _workers(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise ConfigError(f"--workers wants numbers of at least 1, with commas, got {text!r}")
    return counts


def _line(outcome: Outcome) -> str:
    losses = f"{outcome.num_equal} of {outcome.steps} losses equal to the last bit"
    if outcome.is_elastic:
        first, later = outcome.max_relative_after_change, outcome.max_relative
        losses = f"losses within {first:.0e} after the change, {later:.0e} in all"
    weights = "" if outcome.is_elastic else f", {outcome.num_different_weights} weights differ"
    samples = "every sample once" if outcome.is_digest_right else "SAMPLES LOST OR REPEATED"
    return (
        f"{'ok ' if outcome.is_proof else 'BAD'} killed in {outcome.phase:11} {losses}{weights}, {samples}, "
        f"{outcome.repeated_steps} steps done again (at most {outcome.most_repeated_steps})"
    )
