"""`raydet weights`: prepare published weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from raydet.errors import ConfigError

SUFFIXES = (".pth", ".pt", ".bin")

app = typer.Typer(
    name="weights",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Prepare published weights.",
)


@app.callback()
def _group() -> None:
    """Keeps `convert` a word of its own: Typer would drop the name of a single command."""


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A PyTorch file: .pth, .pt or .bin.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The safetensors file to write; default: beside FILE."),
    ] = None,
) -> None:
    """Write weights of PyTorch's own format as safetensors, for model.backbone.pretrained.path.

    Only tensors are read; a file that would run code when read is refused. Tensors may lie at the top of the file or in
    its entry state_dict, model_state_dict or model.
    """
    from raydet.models.pretrained.convert import convert_weights
    from raydet.models.pretrained.files import SUFFIX

    if file.suffix not in SUFFIXES:
        raise ConfigError(f"{file}: expected a file that ends in {', '.join(SUFFIXES)}, got {file.name}")
    output = output or file.with_suffix(SUFFIX)
    if output.suffix != SUFFIX:
        raise ConfigError(f"--output {output} must end in {SUFFIX}")
    if output.exists():
        raise ConfigError(f"{output} exists; remove it, or choose another by --output")
    converted = convert_weights(file, output)
    where = f"in its entry {converted.entry}" if converted.entry else "at its top"
    typer.echo(f"{file}: {len(converted.tensors)} tensors {where}")
    width = max(len(tensor.name) for tensor in converted.tensors)
    for tensor in converted.tensors:
        typer.echo(f"  {tensor.name:{width}}  {tensor.dtype} {list(tensor.shape)}")
    if converted.left_out:
        typer.echo(f"left out: {', '.join(converted.left_out)}")
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    typer.echo(f"{output}: {output.stat().st_size / 2**20:,.1f} MiB, sha256 {digest}")
