"""`raydet doctor`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import AsJsonOption, TrackingOption, interruptible

if TYPE_CHECKING:
    from raydet.doctor.finding import Finding


def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The Ray head, or `auto`; default: RAY_ADDRESS, and without it this machine alone.",
        ),
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Where studies or shards are to be kept: a directory, s3://... or gs://...")
    ] = "runs",
    tracking_uri: TrackingOption = None,
    as_json: AsJsonOption = False,
) -> None:
    """Is this machine, is this cluster fit for a study? One line per finding, with its remedy."""
    if address is not None:
        os.environ["RAY_ADDRESS"] = address  # before anything of Ray is imported
    from raydet.doctor.examine import examine
    from raydet.doctor.finding import exit_code, in_one_object
    from raydet.runs.terminal import own_terminal

    findings: list[Finding] = []
    with interruptible("nothing is left behind"), own_terminal(Path(os.devnull)) as console:
        for finding in examine(
            address=os.environ.get("RAY_ADDRESS") or None, storage=storage, tracking_uri=tracking_uri
        ):
            findings.append(finding)
            if not as_json:
                console.print(finding.as_line(), highlight=False, soft_wrap=True, markup=False)
    if as_json:
        typer.echo(json.dumps(in_one_object(findings)))
    raise typer.Exit(exit_code(findings))
