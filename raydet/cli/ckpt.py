"""`raydet ckpt`: list, verify, export and compare checkpoints."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from raydet.cli.options import AsJsonOption
from raydet.errors import EXIT_DATA, CheckpointError, ConfigError

EXIT_DIFFERENT = 1

app = typer.Typer(
    name="ckpt",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List, verify, export and compare checkpoints.",
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of `raydet ckpt ls`; a damaged checkpoint has only a name."""

    name: str
    epoch: int | None = None
    step: int | None = None
    score: float | None = None
    bytes: int | None = None
    world_size: int | None = None
    verified: str = "damaged"


@app.command("ls")
def list_checkpoints(
    directory: Annotated[Path, typer.Argument(help="A run's directory, or its checkpoints/.")],
    verify: Annotated[bool, typer.Option(help="Verify the hashes of all files.")] = True,
    as_json: AsJsonOption = False,
) -> None:
    """List the checkpoints of a run."""
    rows = [_row(path, verify) for path in _checkpoints(directory)]
    if as_json:
        typer.echo(json.dumps({"checkpoints": [asdict(row) for row in rows]}))
        return
    typer.echo(f"{'name':24} {'epoch':>5} {'step':>8} {'score':>7} {'MiB':>9} {'ranks':>5}  verified")
    for row in rows:
        score = "-" if row.score is None else f"{row.score:.4f}"
        size = "-" if row.bytes is None else f"{row.bytes / 2**20:,.1f}"
        numbers = (row.epoch, row.step, row.world_size)
        epoch, step, ranks = ("-" if number is None else str(number) for number in numbers)
        typer.echo(f"{row.name:24} {epoch:>5} {step:>8} {score:>7} {size:>9} {ranks:>5}  {row.verified}")


@app.command()
def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="Checkpoints, or run directories for all their checkpoints.")
    ],
) -> None:
    """Compare every file with the manifest; exit code 3 if one is damaged."""
    from raydet.checkpoint.manifest import damaged_files

    checkpoints = []
    for path in paths:
        is_checkpoint = path.name.startswith("epoch_") or (path / "manifest.json").exists()
        checkpoints += [path] if is_checkpoint else _checkpoints(path)
    damaged = [line for checkpoint in checkpoints for line in damaged_files(checkpoint)]
    for line in damaged:
        typer.echo(line, err=True)
    if damaged:
        raise typer.Exit(EXIT_DATA)
    typer.echo(f"{len(checkpoints)} of {len(checkpoints)} checkpoints are intact")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint's directory.")],
    destination: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    averaged: Annotated[
        bool,
        typer.Option(
            "--averaged/--raw", help="Average of the weights (optim.ema_decay), where there is one."
        ),
    ] = True,
) -> None:
    """Write the weights that were evaluated as one safetensors file."""
    from raydet.checkpoint.load import export_weights

    export_weights(checkpoint, destination, is_averaged=averaged, metadata=_origin(checkpoint))
    typer.echo(f"{destination}: {destination.stat().st_size / 2**20:,.1f} MiB")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A checkpoint's directory.")],
    second: Annotated[Path, typer.Argument(help="Directory of another checkpoint.")],
    as_json: AsJsonOption = False,
) -> None:
    """Compare two checkpoints tensor by tensor, for any numbers of workers; exit code 0 if equal, 1 if different."""
    from raydet.checkpoint.diff import compare_checkpoints

    found = compare_checkpoints(first, second)
    if as_json:
        content = {"equal": found.is_empty, **asdict(found)}
        for each in content["different"]:
            for key in ("max_abs", "max_rel"):
                each[key] = each[key] if math.isfinite(each[key]) else None  # JSON has no infinity
        typer.echo(json.dumps(content))
    else:
        for name in found.only_in_first:
            typer.echo(f"only in {first}: {name}")
        for name in found.only_in_second:
            typer.echo(f"only in {second}: {name}")
        for each in found.different:
            typer.echo(f"max abs {each.max_abs:.3e}  rel {each.max_rel:.3e}  {each.name}  {each.text}")
        typer.echo(f"{found.num_equal} tensors equal, {len(found.different)} different")
    if not found.is_empty:
        raise typer.Exit(EXIT_DIFFERENT)


def _checkpoints(directory: Path) -> list[Path]:
    inside = directory / "checkpoints"
    found = sorted((inside if inside.is_dir() else directory).glob("epoch_*"))
    if not found:
        raise ConfigError(f"no checkpoints in {directory}; expected a run's directory or its checkpoints/")
    return found


def _row(path: Path, verify: bool) -> _Row:
    from raydet.checkpoint.manifest import damaged_files, read_manifest, read_state

    try:
        manifest, state = read_manifest(path), read_state(path)
    except CheckpointError:
        return _Row(path.name)
    is_damaged = verify and bool(damaged_files(path))
    return _Row(
        path.name,
        epoch=state.get("epoch"),
        step=state.get("step"),
        score=manifest.score,
        bytes=manifest.num_bytes,
        world_size=manifest.world_size,
        verified="damaged" if is_damaged else "yes" if verify else "no",
    )


def _origin(checkpoint: Path) -> dict[str, str]:
    """Metadata of the run that wrote the checkpoint, as far as known from its directory."""
    from raydet.config import Experiment

    checkpoint = checkpoint.absolute()
    origin, config = {"checkpoint": checkpoint.name}, checkpoint.parent.parent / "config.json"
    if config.is_file():
        experiment = Experiment.from_json(config.read_text(), where=str(config))
        origin |= {"name": experiment.name, "fingerprint": experiment.fingerprint()}
    return origin
