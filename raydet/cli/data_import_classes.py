"""`raydet data import-classes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raydet.errors import ConfigError


def import_classes(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A YAML file of SegHiero: fine_names, coarse_names, coarse_to_fine_map of [id] or [first, last], and "
            "optionally super_coarse_names and super_coarse_to_coarse_map.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; it must not exist.")] = Path(
        "classes.yaml"
    ),
) -> None:
    """Write the classes and the class tree of a SegHiero config as classes.yaml, for sets with masks."""
    from raydet.files.classes import imported, read_classes

    text = imported(file)
    try:
        with output.open("x") as handle:
            handle.write(text)
    except FileExistsError:
        raise ConfigError(f"{output}: exists already; delete it, or choose another with -o") from None
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}); choose another with -o") from None
    table = read_classes(output)
    for level in table.levels:
        typer.echo(f"{level.name}: {', '.join(level.groups)}")
    typer.echo(f"written: {output}, {len(table.classes)} classes; 255 in a mask is no label")
