"""Anomaly maps beside their images.

Legend: H W image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raydet.config import AnomalyScore
from raydet.data.build import palette_of
from raydet.engine.calibration import Calibration
from raydet.engine.open_run import TrainedRun
from raydet.metrics.anomaly import image_metrics
from raydet.metrics.anomaly_records import AnomalyRecords
from raydet.ops.colours import as_colours, painted
from raydet.report.drawings.panels import (
    PAPER,
    Colour,
    Panel,
    arranged,
    as_png,
    enlarged,
    is_stacked,
    panel_factor,
)
from raydet.report.figures.anomalies import curves
from raydet.report.figures.style import figure_style
from raydet.structures import ANOMALY, IGNORE, mask_of
from raydet.tasks.anomaly_maps import anomaly_map
from raydet.tasks.pixel_outputs import PixelOutputs, pixel_outputs

ANOMALY_COLOUR: Colour = (60, 250, 240)
PANELS_PER_ROW = 4
SHOWN_SHARE = (1.0, 99.0)
"""Percentiles of an image's scores at the ends of the colour scale."""


def draw_anomalies(
    run: TrainedRun,
    names: Sequence[AnomalyScore],
    calibration: Calibration | None,
    directory: Path,
    *,
    count: int,
) -> list[Path]:
    """Write a PNG of each of the first `count` evaluation images with anomalies: the image, the truth, the prediction
    and a map for each score.

    Raises:
        ConfigError: a score needs a calibration.
        DataError: an image cannot be read.
    """
    paths: list[Path] = []
    for index in run.indices:
        if len(paths) == count:
            break
        image_id = run.source.image_ids[index]
        if not bool((mask_of(run.source.targets(index)[0], image_id).ids_HW == ANOMALY).any()):
            continue
        [outputs] = pixel_outputs(run.model, run.source, [index], run.experiment)
        name = re.sub(r"[^\w.-]", "_", image_id)
        path = directory / f"{len(paths):05d}_{name}.png"
        path.write_bytes(as_png(_page(run, outputs, names, calibration)))
        paths.append(path)
    return paths


def draw_curves(found: Mapping[str, AnomalyRecords], directory: Path) -> Path:
    """Write `curves.png`: ROC and precision-recall curves of the scores."""
    path = directory / "curves.png"
    with figure_style():
        path.write_bytes(curves(found).png())
    return path


def _page(
    run: TrainedRun, outputs: PixelOutputs, names: Sequence[AnomalyScore], calibration: Calibration | None
) -> Image.Image:
    sample = run.source.read(outputs.index)
    colours, factor = palette_of(run.source), panel_factor(sample.valid_hw)
    truth_HW = outputs.truth_HW.masked_fill(outputs.truth_HW == ANOMALY, len(colours))
    panels = [
        Panel(run.experiment.data.shown_name(name), enlarged(as_colours(x_CHW), factor))
        for name, x_CHW in sample.modalities.items()
    ]
    panels.append(
        Panel("truth; bright: anomaly", enlarged(painted(truth_HW, (*colours, ANOMALY_COLOUR)), factor))
    )
    predicted_HW = outputs.logits_1KHW[0].argmax(dim=0).cpu().to(outputs.truth_HW.dtype)
    panels.append(Panel("prediction", enlarged(painted(predicted_HW, colours), factor)))
    counted_HW = outputs.truth_HW != IGNORE
    is_anomalous_N = (outputs.truth_HW == ANOMALY)[counted_HW].numpy()
    for name in names:
        statistics = None if calibration is None else calibration.statistics
        scores_HW = anomaly_map(name, outputs, statistics).cpu()
        auroc = image_metrics(scores_HW[counted_HW].numpy(), is_anomalous_N).auroc
        panels.append(Panel(f"{name}: AUROC {auroc:.3f}", enlarged(_coloured(scores_HW.numpy()), factor)))
    no_legend = Image.new("RGB", (1, 1), PAPER)
    rows = [
        arranged(
            panels[start : start + PANELS_PER_ROW],
            title="" if start else f"image {sample.image_id}",
            legend=no_legend,
            stacked=is_stacked(sample.valid_hw),
        )
        for start in range(0, len(panels), PANELS_PER_ROW)
    ]
    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    for number, row in enumerate(rows):
        page.paste(row, (0, sum(above.height for above in rows[:number])))
    return page


def _coloured(scores_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Viridis: bright is anomalous."""
    low, high = np.percentile(scores_HW, SHOWN_SHARE)
    scaled_HW = np.clip((scores_HW - low) / max(float(high - low), 1e-12), 0, 1)
    colours: NDArray[np.uint8] = matplotlib.colormaps["viridis"](scaled_HW, bytes=True)[..., :3]
    return colours
