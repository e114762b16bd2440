"""`raydet bench losses`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from raydet.cli.options import AsJsonOption, interruptible


def losses(
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 8,
    side: Annotated[int, typer.Option(min=32, help="Height and width of the canvas in pixels.")] = 150,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, in which both take turns.")] = 7,
    as_json: AsJsonOption = False,
) -> None:
    """Time the losses of masks, forward and backward, against plain implementations of the published formulas."""
    from raydet.bench.segmentation_losses import LossSize, bench_losses

    with interruptible():
        found = bench_losses(LossSize(batch, (side, side)), rounds=repeats)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in found]))
        return
    typer.echo(f"{batch} images of {side} x {side}, logits at a quarter; medians of {repeats} rounds")
    for row in found:
        typer.echo(
            f"{row.name:25} {1000 * row.seconds:8.1f} ms, plain {1000 * row.plain_seconds:8.1f} ms, "
            f"ratio {row.ratio:.2f} "
            f"({row.ratio_low:.2f} to {row.ratio_high:.2f}); peak {row.peak_bytes / 2**20:7.1f} MiB, plain "
            f"{row.plain_peak_bytes / 2**20:7.1f} MiB"
        )
