"""`raydet verify`: check runs and studies for lost or repeated work."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli import options
from raydet.cli.options import adjusted, interruptible, parse_choices, starting_experiment
from raydet.errors import EXIT_OK, EXIT_TRIALS_FAILED, ConfigError

if TYPE_CHECKING:
    from raydet.verify.resume import Outcome

app = typer.Typer(
    name="verify",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Verify that no work is lost or repeated.",
)


@app.command()
def resume(
    recipe: options.RecipeOption = None,
    config: options.ConfigOption = None,
    backbone: options.BackboneOption = None,
    data: options.DataOption = None,
    sets: options.SetOption = None,
    steps: Annotated[int, typer.Option(help="Steps to train, rounded up to whole epochs.")] = 12,
    workers: Annotated[
        str,
        typer.Option(
            help="Processes on this machine, e.g. 2; or their number after each restart, e.g. 4,2,3."
        ),
    ] = "1",
    phases: Annotated[
        str, typer.Option(help="Phases in which to kill the run (SIGKILL), separated by commas; or all.")
    ] = "backward",
    as_json: options.AsJsonOption = False,
) -> None:
    """Kill a run and resume it; compare losses, samples and weights with an uninterrupted run."""
    from raydet.resilience.fault_injection import FAULT_PHASES
    from raydet.verify.resume import ResumeCheck

    experiment = adjusted(starting_experiment(recipe, config), backbone=backbone, data=data, sets=sets)
    kill_phases, counts = parse_choices(phases, FAULT_PHASES, "--phases"), _workers(workers)
    with (
        interruptible("nothing has been verified"),
        tempfile.TemporaryDirectory(prefix="raydet-verify-") as directory,
    ):
        check = ResumeCheck(experiment, steps=steps, workers=counts, directory=Path(directory))
        check.run_undisturbed()
        outcomes = []
        for phase in kill_phases:
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
    directory: Annotated[Path, typer.Argument(help="A study's directory, `<storage>/<study>`.")],
    tracking_uri: options.TrackingOption = None,
    as_json: options.AsJsonOption = False,
) -> None:
    """Check a study's journal, summary, tracker and files: each trial once, every sample once."""
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
        raise ConfigError(f"--workers must be numbers of at least 1, separated by commas, got {text!r}")
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
        f"{outcome.repeated_steps} steps repeated (at most {outcome.most_repeated_steps})"
    )
