"""`raydet calibrate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raydet.cli import options
from raydet.cli.options import interruptible, open_run, output_directory

if TYPE_CHECKING:
    from raydet.engine.calibration import Calibration


def calibrate(
    run: options.RunArgument,
    split: Annotated[
        Literal["calibration", "train", "val"],
        typer.Option(
            help="Part of the run's own images; val has chosen the checkpoint, and train was learnt."
        ),
    ] = "calibration",
    workers: Annotated[
        int, typer.Option(min=0, help="Ray actors, of one CPU or GPU each; 0: this process, without Ray.")
    ] = 0,
    use_gpu: options.DeviceOption = None,
    as_json: options.AsJsonOption = False,
) -> None:
    """Fit the statistics that anomaly scores need (raydet anomalies), for a run's newest checkpoint: calibration.npz in
    the run's directory."""
    opened = open_run(run, data=None, use_gpu=use_gpu, split=split)
    output_directory(opened.run_dir)
    from raydet.engine.calibration import calibrate as fit

    with interruptible("nothing was written"):
        if workers:
            from raydet.launch.calibration import calibrated_on_ray
            from raydet.launch.cluster import cluster

            with cluster():
                found = calibrated_on_ray(opened, split, workers=workers)
        else:
            found = fit(opened, split)
        path = found.write(opened.run_dir)
    if as_json:
        typer.echo(json.dumps({"file": str(path), **found.card._asdict(), "thresholds": found.thresholds}))
        return
    typer.echo("\n".join(_lines(found, opened.experiment.data.classes)))
    typer.echo(f"written: {path}")


def _lines(found: Calibration, classes: tuple[str, ...]) -> list[str]:
    card, statistics = found.card, found.statistics
    unknown = [
        name for name, is_known in zip(classes, statistics.features.is_known, strict=True) if not is_known
    ]
    lines = [
        f"{card.checkpoint}: {card.num_images:,} {card.split} images, {card.num_pixels:,} labelled pixels; features of "
        f"map {card.feature_map + 1}, {len(statistics.precision_CC)} channels, at most {card.features_per_class:,} per "
        "class and image",
        f"thresholds that {card.false_positive_rate:.0%} of these pixels reach: "
        + ", ".join(f"{name} {value:.4g}" for name, value in found.thresholds.items()),
    ]
    if unknown:
        lines.append(f"warning: no pixel of {', '.join(unknown)}: distances to these classes are left out")
    return lines
