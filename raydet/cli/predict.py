"""`raydet predict`."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
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
    from raydet.engine.streaming import HistogramSettings

DETECTIONS = "detections.json"
STREAM = "stream.csv"


def predict(
    run: RunArgument,
    output: Annotated[Path, typer.Option(help="Directory for detections.json or masks/, and pictures/.")],
    data: OtherDataOption = None,
    draw: Annotated[int, typer.Option(min=0, help="Number of images to draw.")] = 0,
    draw_score: Annotated[float, typer.Option(min=0, max=1, help="Minimum score of drawn detections.")] = 0.5,
    stream: Annotated[
        Path | None,
        typer.Option(help="A recording of an event camera: its windows one by one, in the order of time."),
    ] = None,
    sensor: Annotated[
        str | None,
        typer.Option(help="Height and width of --stream's sensor, e.g. 720x1280, if the file has none."),
    ] = None,
    gap_ms: Annotated[
        float,
        typer.Option(min=1, help="Time without an event after which --stream forgets what it has seen."),
    ] = 1000.0,
    window_ms: Annotated[
        float | None,
        typer.Option(min=0.001, help="Window of --stream; default: that of the run's recordings, else 50."),
    ] = None,
    halving: Annotated[
        bool | None,
        typer.Option(
            help="Half the size of --stream's histograms; default: as the run's recordings, else not."
        ),
    ] = None,
    use_gpu: DeviceOption = None,
) -> None:
    """Write detections of a run's newest checkpoint as COCO JSON, or its masks as PNG, in source pixels. The images of
    --data need no labels.

    With --stream, detections are written window by window as CSV, and the latency of a window is told.
    """
    if stream is not None:
        from raydet.engine.streaming import histogram_settings
        from raydet.errors import ConfigError

        if data is not None:
            raise ConfigError("--stream and --data are both given: expected one of them")
        opened = open_run(run, data=None, use_gpu=use_gpu)
        settings = histogram_settings(opened)
        if window_ms is not None:
            settings = replace(settings, window_us=round(1000 * window_ms))
        if halving is not None:
            settings = replace(settings, halving=halving)
        _stream(opened, stream, output, settings, sensor=sensor, gap_ms=gap_ms)
        return
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


def _stream(
    run: TrainedRun,
    path: Path,
    output: Path,
    settings: HistogramSettings,
    *,
    sensor: str | None,
    gap_ms: float,
) -> None:
    from raydet.engine.streaming import latency_ms, stream
    from raydet.errors import ConfigError
    from raydet.files.events.open import open_events

    size = None if sensor is None else re.fullmatch(r"(\d+)x(\d+)", sensor)
    if sensor is not None and size is None:
        raise ConfigError(f"--sensor: expected HEIGHTxWIDTH, such as 720x1280, got {sensor!r}")
    recording = open_events(path, None if size is None else (int(size[1]), int(size[2])))
    target = output_directory(output) / STREAM
    classes, latencies, num_detections, num_resets = run.experiment.data.classes, list[float](), 0, 0
    with interruptible("the same command restarts"), target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("end_us", "x1", "y1", "x2", "y2", "score", "class"))
        for window in stream(run, recording, settings, gap_us=round(1000 * gap_ms)):
            found = window.detections
            for box, score, label in zip(
                found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            ):
                row = (*(f"{side:.2f}" for side in box), f"{score:.6f}", classes[label])
                writer.writerow((window.end_us, *row))
            latencies.append(window.latency_s)
            num_detections += len(found.scores)
            num_resets += window.is_reset
    p50, p99 = latency_ms(latencies)
    typer.echo(
        f"{num_detections} detections in {len(latencies)} windows of {settings.window_us / 1000:g} ms: {target}; "
        f"latency p50 {p50:.1f} ms, p99 {p99:.1f} ms on {run.device.type}; memory emptied "
        f"{num_resets} time{'' if num_resets == 1 else 's'}, the first window's included"
    )


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
