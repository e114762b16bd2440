"""`raydet predict`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli.options import (
    DeviceOption,
    OtherDataOption,
    RunArgument,
    interruptible,
    open_run,
    output_directory,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raydet.engine.open_run import TrainedRun

DETECTIONS = "detections.json"


def predict(
    run: RunArgument,
    output: Annotated[Path, typer.Option(help="Directory for detections.json or masks/, and pictures/.")],
    data: OtherDataOption = None,
    draw: Annotated[int, typer.Option(min=0, help="Number of images to draw.")] = 0,
    draw_score: Annotated[float, typer.Option(min=0, max=1, help="Minimum score of drawn detections.")] = 0.5,
    use_gpu: DeviceOption = None,
) -> None:
    """Write detections of a run's newest checkpoint as COCO JSON, or its masks as PNG, in source pixels. The images of
    --data need no labels."""
    opened = open_run(run, data=data, use_gpu=use_gpu, is_labelled=False)
    path = output_directory(output) / DETECTIONS
    from raydet.config import SegmentationTask

    if isinstance(opened.experiment.task, SegmentationTask):
        with interruptible("the same command restarts"):
            levels = [level.name for level in opened.experiment.task.levels]
            _write_masks(opened, output, levels=levels, num_drawn=draw)
        return
    from raydet.engine.open_run import predicted
    from raydet.export.coco_results import category_ids_of, coco_results

    with interruptible("the same command restarts"):
        rows = predicted(opened)
        rows = rows[rows[:, 6] >= 0]  # a run with task.event also notes which frames have events
        results = coco_results(
            rows,
            image_ids=[opened.source.image_ids[index] for index in opened.indices],
            category_ids=category_ids_of(opened.source),
        )
        path.write_text(json.dumps(results) + "\n")
        note = opened.experiment.data.simulation_note
        typer.echo(f"{len(results)} detections in {len(opened.indices)} images: {path} {note}".rstrip())
        if draw:
            _draw(opened, rows[rows[:, 5] >= draw_score], count=draw, directory=output / "pictures")


def _write_masks(run: TrainedRun, output: Path, *, levels: list[str], num_drawn: int) -> None:
    from raydet.data.build import palette_of
    from raydet.engine.open_run import segmented
    from raydet.export.masks import MaskFiles, overlay

    colours, image_ids = palette_of(run.source), [run.source.image_ids[index] for index in run.indices]
    files = MaskFiles(output, image_ids=image_ids, colours=colours, levels=levels)
    for position, (index, ids_LHW) in enumerate(segmented(run)):
        image_id = run.source.image_ids[index]
        files.write(image_id, ids_LHW)
        if position < num_drawn:
            path = output / "pictures" / files.names[image_id]
            path.parent.mkdir(parents=True, exist_ok=True)
            overlay(run.source.read(index), ids_LHW[0], colours).save(path)
    note = run.experiment.data.simulation_note
    shown = ", ".join(str(directory) for directory in files.directories)
    typer.echo(f"masks of {len(run.indices)} images: {shown} {note}".rstrip())


def _draw(run: TrainedRun, rows: NDArray[np.float64], *, count: int, directory: Path) -> None:
    from PIL import Image

    from raydet.export.drawing import draw_boxes

    directory.mkdir(exist_ok=True)
    for position, index in enumerate(run.indices[:count]):
        sample = run.source.read(index)
        name = re.sub(r"[^\w.-]", "_", sample.image_id)
        image = draw_boxes(sample, rows[rows[:, 0] == position], run.source.classes)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(directory / f"{position:05d}_{name}.png")
    typer.echo(f"{min(count, len(run.indices))} images: {directory}")
