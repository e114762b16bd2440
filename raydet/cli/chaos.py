"""`raydet chaos`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import AsJsonOption, interruptible, local_directory, parse_choices
from raydet.errors import EXIT_OK, EXIT_TRIALS_FAILED, ConfigError

if TYPE_CHECKING:
    from raydet.verify.chaos import ChaosReport

WORDS_BEFORE = {"python", "python3", "-m", "raydet"}
STUDY_COMMANDS = {"tune", "raydet.tune"}


def chaos(
    command: Annotated[
        list[str], typer.Argument(help="A study's command without --storage, e.g. tune --space gaff_phase1.")
    ],
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 6,
    targets: Annotated[
        str, typer.Option(help="Any of worker, node, trial, driver, preemption, separated by commas; or all.")
    ] = "all",
    phases: Annotated[
        str,
        typer.Option(
            help="Where to kill: load, forward, backward, update, save-write, save-commit, evaluate, separated by "
            "commas; or all."
        ),
    ] = "all",
    seed: Annotated[int, typer.Option(help="Seed of the random choices.")] = 0,
    nodes: Annotated[int, typer.Option(help="Nodes of the local cluster, in addition to its head.")] = 3,
    cpus_per_node: Annotated[int, typer.Option(help="CPUs per node.")] = 1,
    replace: Annotated[bool, typer.Option(help="Replace killed nodes.")] = True,
    pause: Annotated[float, typer.Option(help="Longest pause between two kills, in seconds.")] = 5.0,
    patience: Annotated[
        float, typer.Option(help="Seconds without progress after which the study counts as hung.")
    ] = 600.0,
    storage: Annotated[
        str | None, typer.Option(help="Keep the study in this directory; it must be empty.")
    ] = None,
    as_json: AsJsonOption = False,
) -> None:
    """Kill workers, nodes, trials and drivers of a study at random, on a local cluster; check that nothing is lost.

    By default, the study runs with --checkpoint-minutes 0.1, and --max-failures above the number of kills.
    """
    from raydet.resilience.fault_injection import FAULT_PHASES
    from raydet.verify.chaos import TARGETS, Chaos, ChaosOptions

    options = ChaosOptions(
        kills=kills,
        targets=parse_choices(targets, TARGETS, "--targets"),
        phases=parse_choices(phases, FAULT_PHASES, "--phases"),
        seed=seed,
        nodes=nodes,
        cpus_per_node=cpus_per_node,
        replace=replace,
        longest_pause_s=pause,
        patience_s=patience,
    )
    place: AbstractContextManager[str] = (
        tempfile.TemporaryDirectory(prefix="raydet-chaos-", ignore_cleanup_errors=True)
        if storage is None
        else nullcontext(str(local_directory(storage, "--storage")))
    )
    with interruptible("nothing has been verified"), place as directory:
        disturbed = Chaos(
            study_arguments(command),
            storage=Path(directory),
            options=options,
            tell=lambda kill: None if as_json else typer.echo(kill),
        )
        report = disturbed.run()
    _print_report(report, as_json)
    raise typer.Exit(EXIT_OK if report.is_proof else EXIT_TRIALS_FAILED)


def study_arguments(command: Sequence[str]) -> list[str]:
    """The arguments after `raydet tune`, or `python -m raydet.tune`.

    >>> study_arguments(["python", "-m", "raydet.tune", "--space", "gaff_phase1"])
    ['--space', 'gaff_phase1']
    """
    for position, word in enumerate(command):
        if word in STUDY_COMMANDS:
            return list(command[position + 1 :])
        if word not in WORDS_BEFORE:
            break
    raise ConfigError(
        f"chaos: expected a study's command, e.g. tune --space gaff_phase1, got {' '.join(command)!r}"
    )


def _print_report(report: ChaosReport, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"ok": report.is_proof, **asdict(report)}))
        return
    for problem in report.study.problems:
        typer.echo(f"BAD {problem}")
    if len(report.kills) < report.ordered:
        typer.echo(f"the study ended after {len(report.kills)} of {report.ordered} kills")
    if report.exit_code:
        typer.echo(f"BAD the last driver exited with code {report.exit_code}")
    typer.echo(f"{report.wall_s:.0f} s, {len(report.kills)} kills: {report.study}")
    typer.echo("nothing was lost" if report.is_proof else "SOMETHING WAS LOST")
