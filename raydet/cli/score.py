"""`raydet score`: score detections and anomaly maps of any tool like those of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import AsJsonOption, SetOption, parse_overrides
from raydet.cli.score_anomaly import anomaly
from raydet.errors import ConfigError

if TYPE_CHECKING:
    from raydet.config import DetectionTask

app = typer.Typer(
    name="score",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Score the detections or the anomaly maps of any tool, from files.",
)
app.command()(anomaly)


@app.command()
def coco(
    truth: Annotated[Path, typer.Argument(help="COCO json: images, annotations, categories.")],
    detections: Annotated[
        Path, typer.Argument(help="COCO results: a json list of image_id, category_id, bbox, score.")
    ],
    sets: SetOption = None,
    as_json: AsJsonOption = False,
) -> None:
    """COCO metrics and AP per class; --set task.* measures as a run with that config does."""
    config = _settings(parse_overrides(sets))
    from raydet.metrics.files import read_coco
    from raydet.metrics.measure import measure
    from raydet.metrics.sizes import SizeBins

    ground, rows, classes = read_coco(truth, detections)
    bins = SizeBins.of(config)
    if bins.unit == "fraction" and ground.sizes_hw is None:
        raise ConfigError(f"task.size_bins_fraction requires the height and width of every image of {truth}")
    result, _ = measure(config, ground, rows, classes)
    per_class = {f"AP/{name}": value for name, value in result.per_class_ap.items()}
    counts = {"images": ground.num_images, "objects": len(ground.labels), "detections": len(rows)}
    if as_json:
        content = {**counts, "size_bins": bins.as_json(), "metrics": result.metrics, "per_class": per_class}
        typer.echo(json.dumps(content))
        return
    typer.echo(", ".join(f"{count} {name}" for name, count in counts.items()) + f"; {bins}")
    typer.echo("\n".join(_lines(result.metrics | per_class)))


@app.command()
def kaist(
    annotations: Annotated[Path, typer.Argument(help="KAIST_annotation.json of the benchmark.")],
    detections: Annotated[
        Path, typer.Argument(help="Lines of image,x,y,width,height,score; images count from 1.")
    ],
    as_json: AsJsonOption = False,
) -> None:
    """Compute KAIST's log-average miss rate of the reasonable set; lower is better."""
    from raydet.metrics.kaist import miss_rates_of, read_annotations, read_detections

    test_set = read_annotations(annotations)
    rows = read_detections(detections, test_set)
    published, complete = (miss_rates_of(test_set, rows, as_published=flag) for flag in (True, False))
    if as_json:
        typer.echo(json.dumps({"as_published": published, "all_objects": complete}))
        return
    typer.echo("log-average miss rate, reasonable set, 0..1, lower is better")
    typer.echo("as the benchmark's script counts, without the objects in images without detections:")
    typer.echo("\n".join(_lines(published)))
    typer.echo("all objects counted:")
    typer.echo("\n".join(_lines(complete)))


def _settings(overrides: Mapping[str, object]) -> DetectionTask:
    from raydet.config import DetectionTask, apply_overrides
    from raydet.config.moved import current_path
    from raydet.recipes import recipe

    for path in overrides:
        if current_path(path).split(".")[0] != "task":
            raise ConfigError(f"--set {path}: only task.* changes how detections are scored")
    task = apply_overrides(recipe("demo"), overrides).task
    assert isinstance(task, DetectionTask)
    return task


def _lines(metrics: Mapping[str, float | None]) -> Iterator[str]:
    width = max(map(len, metrics))
    for name, value in metrics.items():
        yield f"{name:{width}}  {'no objects in this bin' if value is None else f'{value:.4f}'}"
