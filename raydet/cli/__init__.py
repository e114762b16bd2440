"""The command line. Imports torch, ray and the configs (whose types take a quarter of a second to make) only inside the
commands that need them.

Exit codes: 0 done, 1 a run failed, 2 usage or config, 3 data, 4 out of memory, 5 stalled, 6 the budget is spent,
130 interrupted, 143 asked to stop and saved.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from raydet import __version__
from raydet.cli.bench import bench
from raydet.cli.bench_checkpoint import checkpoint
from raydet.cli.bench_evaluation import evaluation
from raydet.cli.bench_inference import inference
from raydet.cli.bench_loader import loader
from raydet.cli.chaos import chaos
from raydet.cli.ckpt import app as ckpt
from raydet.cli.compare import compare
from raydet.cli.data import app as data
from raydet.cli.doctor import doctor
from raydet.cli.evaluate import evaluate
from raydet.cli.listing import recipes, spaces
from raydet.cli.plan import plan
from raydet.cli.predict import predict
from raydet.cli.report import report
from raydet.cli.robustness import robustness
from raydet.cli.score import app as score
from raydet.cli.train import train
from raydet.cli.tune import tune
from raydet.cli.verify import app as verify
from raydet.errors import EXIT_OK, EXIT_OUR_MISTAKE, ConfigError, RaydetError
from raydet.redact import redact, secret_in

app = typer.Typer(
    name="raydet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distributed multi-modal object detection on Ray: fusion comparisons that can be trusted.",
)

for command in (recipes, spaces, plan, train, tune, report, compare, evaluate, predict, robustness, doctor):
    app.command()(command)
bench.command()(checkpoint)
bench.command()(evaluation)
bench.command()(inference)
bench.command()(loader)
app.add_typer(bench, name="bench")
app.command(context_settings={"allow_interspersed_args": False})(chaos)
app.add_typer(ckpt)
app.add_typer(data)
app.add_typer(score)
app.add_typer(verify)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _refuse_secrets(arguments)
        app(args=arguments, standalone_mode=True)
    except RaydetError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception:  # a mistake of ours
        typer.echo(redact(traceback.format_exc()), err=True, nl=False)
        sys.exit(EXIT_OUR_MISTAKE)


def _refuse_secrets(arguments: Sequence[str]) -> None:
    """A command line stands in the list of processes, in the shell's history and in Ray's list of jobs."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if secret := secret_in(argument):
            flag = argument.split("=")[0] if argument.startswith("--") else before
            where = f"{flag} wants" if flag.startswith("--") else "wanted"
            raise ConfigError(f"{where} a URI without keys or passwords, got {secret}")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raydet {__version__}")
        raise typer.Exit(EXIT_OK)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
