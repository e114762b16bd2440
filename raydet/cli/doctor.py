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
            help="The Ray head, or `auto`; default: RAY_ADDRESS if set, else this machine alone.",
        ),
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Storage of studies or shards: a directory, s3://... or gs://...")
    ] = "runs",
    tracking_uri: TrackingOption = None,
    as_json: AsJsonOption = False,
) -> None:
    """Check whether this machine or cluster is ready for a study. Prints one line per finding, with its remedy."""
    if address is not None:
        os.environ["RAY_ADDRESS"] = address  # before Ray is imported
    from raydet.doctor.examine import examine
    from raydet.doctor.finding import exit_code, findings_as_json
    from raydet.runs.terminal import exclusive_terminal

    findings: list[Finding] = []
    with interruptible("nothing is left behind"), exclusive_terminal(Path(os.devnull)) as console:
        for finding in examine(
            address=os.environ.get("RAY_ADDRESS") or None, storage=storage, tracking_uri=tracking_uri
        ):
            findings.append(finding)
            if not as_json:
                console.print(finding.as_line(), highlight=False, soft_wrap=True, markup=False)
    if as_json:
        typer.echo(json.dumps(findings_as_json(findings)))
    raise typer.Exit(exit_code(findings))
