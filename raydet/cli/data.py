"""`raydet data`: sets of images."""

from __future__ import annotations

import typer

from raydet.cli.data_check import check
from raydet.cli.data_convert import convert

app = typer.Typer(
    name="data",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check sets of images, and convert them.",
)
app.command()(check)
app.command()(convert)


@app.callback()
def _root() -> None:
    pass
