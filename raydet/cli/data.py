"""`raydet data`."""

from __future__ import annotations

import typer

from raydet.cli.data_check import check

app = typer.Typer(
    name="data",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Look after the pictures.",
)


@app.callback()
def _group() -> None:
    """Look after the pictures."""


app.command()(check)
