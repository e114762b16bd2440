"""The command line. Commands import torch, ray and the configs (a quarter of a second) only when they run.

Exit codes: 0 success, 1 a run failed, 2 usage or config, 3 data, 4 out of memory, 5 stalled, 6 budget spent,
130 interrupted, 143 stopped on request, with a checkpoint.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from raydet import __version__
from raydet.cli.anomalies import anomalies
from raydet.cli.bench import bench
from raydet.cli.bench_anomaly import anomaly
from raydet.cli.bench_checkpoint import checkpoint
from raydet.cli.bench_evaluation import evaluation
from raydet.cli.bench_events import events
from raydet.cli.bench_inference import inference
from raydet.cli.bench_loader import loader
from raydet.cli.bench_losses import losses
from raydet.cli.calibrate import calibrate
from raydet.cli.chaos import chaos
from raydet.cli.ckpt import app as ckpt
from raydet.cli.compare import compare
from raydet.cli.data import app as data
from raydet.cli.doctor import doctor
from raydet.cli.evaluate import evaluate
from raydet.cli.plan import plan
from raydet.cli.predict import predict
from raydet.cli.report import report
from raydet.cli.robustness import robustness
from raydet.cli.score import app as score
from raydet.cli.spaces import recipes, spaces
from raydet.cli.train import train
from raydet.cli.tune import tune
from raydet.cli.verify import app as verify
from raydet.cli.weights import app as weights
from raydet.errors import EXIT_INTERNAL_ERROR, EXIT_OK, ConfigError, RaydetError
from raydet.redact import redact, secret_in

app = typer.Typer(
    name="raydet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distributed multi-modal object detection on Ray: fusion comparisons that can be trusted.",
)

for command in (
    *(recipes, spaces, plan, train, tune, report, compare),
    *(evaluate, predict, robustness, calibrate, anomalies, doctor),
):
    app.command()(command)
bench.command()(anomaly)
bench.command()(checkpoint)
bench.command()(evaluation)
bench.command()(events)
bench.command()(losses)
bench.command()(inference)
bench.command()(loader)
app.add_typer(bench, name="bench")
app.command(context_settings={"allow_interspersed_args": False})(chaos)
app.add_typer(ckpt)
app.add_typer(data)
app.add_typer(score)
app.add_typer(verify)
app.add_typer(weights)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_secrets(arguments)
        app(args=arguments, standalone_mode=True)
    except RaydetError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception:  # a bug in raydet
        typer.echo(redact(traceback.format_exc()), err=True, nl=False)
        sys.exit(EXIT_INTERNAL_ERROR)


def _refuse_secrets(arguments: Sequence[str]) -> None:
    """Refuse secrets: command lines appear in process lists, the shell's history and Ray's list of jobs."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if secret := secret_in(argument):
            flag = argument.split("=")[0] if argument.startswith("--") else before
            where = f"{flag}: " if flag.startswith("--") else ""
            raise ConfigError(f"{where}expected a URI without keys or passwords, got {secret}")


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"raydet {__version__}")
        raise typer.Exit(EXIT_OK)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
