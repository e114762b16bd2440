"""`raydet data`: check and convert data sets."""

from __future__ import annotations

import typer

from raydet.cli.data_check import check
from raydet.cli.data_convert import convert
from raydet.cli.data_import_classes import import_classes

app = typer.Typer(
    name="data",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check and convert data sets.",
)
app.command()(check)
app.command()(convert)
app.command(name="import-classes")(import_classes)
