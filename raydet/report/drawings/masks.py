"""Drawn images of a run on masks: its best and worst images, and which classes it takes for which.

Legend: K classes, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from raydet.data.build import palette_of
from raydet.engine.open_run import TrainedRun, segmented
from raydet.metrics.confusion import ConfusionRecords
from raydet.metrics.names import metrics_of
from raydet.metrics.records import score
from raydet.ops.colours import as_colours, painted
from raydet.report.drawings.panels import (
    INK,
    LINE_PX,
    PAPER,
    Colour,
    Drawing,
    Panel,
    arranged,
    as_png,
    enlarged,
    font,
    is_stacked,
    panel_factor,
    shortened,
    titled,
)
from raydet.report.drawings.ranking import best_and_worst
from raydet.structures import IGNORE, Sample, mask_of

MISTAKES: tuple[Colour, Colour] = ((235, 235, 235), (200, 30, 30))
"""Colours of right and of wrong pixels."""
MAX_CLASSES = 40
"""More would not be told apart in a heat map; those with the most pixels are shown."""
MAX_IN_LEGEND = 24
CELL_IN = 0.32


def mask_drawings(run: TrainedRun, records: ConfusionRecords, count: int) -> list[Drawing]:
    """The `count` best and the `count` worst images by their own mIoU, and the confusion of the classes."""
    ious_I = records.image_ious()
    known = np.flatnonzero(~np.isnan(ious_I))
    best_first: list[int] = known[np.lexsort((records.image_ids[known], -ious_I[known]))].tolist()
    best, worst = best_and_worst(best_first, records.group_ids, count)
    metric = metrics_of(run.experiment.task)[0]
    overall = f"{score(records, metric.name):.3f}"
    drawings = []
    for kind, indices in (("best", best), ("worst", worst)):
        shown = replace(run, indices=[run.indices[index] for index in indices])
        for rank, (index, (source_index, ids_LHW)) in enumerate(
            zip(indices, segmented(shown), strict=True), 1
        ):
            sample = run.source.read(source_index)
            caption = (
                f"{metric.label} of this image {ious_I[index]:.3f}, of all {len(records.image_ids)} images together "
                f"{overall}. Red: wrong. Black: no label, not counted. {run.experiment.data.simulation_note}"
            ).rstrip()
            title = f"{kind.capitalize()} image {rank}: {sample.image_id}"
            drawings.append(Drawing(f"{kind}-{rank}", title, caption, as_png(_draw(run, sample, ids_LHW[0]))))
    return [*drawings, _confusion(records)]


def _draw(run: TrainedRun, sample: Sample, ids_HW: Tensor) -> Image.Image:
    """A panel per modality, the true mask, the predicted one, and the mistakes."""
    truth_HW = mask_of(sample.target, sample.image_id).labelled()
    colours, factor = palette_of(run.source), panel_factor(sample.valid_hw)
    panels = [
        Panel(
            run.experiment.data.shown_name(name)
            + (" (not used by the model)" if name in run.unused_modalities else ""),
            enlarged(as_colours(x_CHW), factor),
        )
        for name, x_CHW in sample.modalities.items()
    ]
    panels.append(Panel("ground truth", enlarged(painted(truth_HW, colours), factor)))
    panels.append(Panel("prediction", enlarged(painted(ids_HW, colours), factor)))
    is_wrong_HW = (truth_HW != ids_HW).int().masked_fill(truth_HW == IGNORE, len(MISTAKES))
    panels.append(Panel("mistakes", enlarged(painted(is_wrong_HW, MISTAKES), factor)))
    present = [
        label for label in range(len(colours)) if bool(((truth_HW == label) | (ids_HW == label)).any())
    ]
    legend = _legend([run.source.classes[label] for label in present], [colours[label] for label in present])
    return arranged(
        panels, title=f"image {sample.image_id}", legend=legend, stacked=is_stacked(sample.valid_hw)
    )


def _legend(names: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """A strip with the names of the classes of an image."""
    face = font(13)
    texts = [shortened(name) for name in names[:MAX_IN_LEGEND]]
    if len(names) > MAX_IN_LEGEND:
        texts.append(f"and {len(names) - MAX_IN_LEGEND} more")
    strip = Image.new("RGB", (sum(round(face.getlength(text)) + 36 for text in texts) + 1, LINE_PX), PAPER)
    draw, left = ImageDraw.Draw(strip), 0
    for index, text in enumerate(texts):
        if index < min(len(names), MAX_IN_LEGEND):
            draw.rectangle((left, 3, left + 16, 14), fill=colours[index], outline=INK)
        draw.text((left + 22, 1), text, INK, face)
        left += round(face.getlength(text)) + 36
    return strip


def _confusion(records: ConfusionRecords) -> Drawing:
    counts_KK = records.confusion()
    shown = np.sort(np.argsort(-counts_KK[:, :-1].sum(axis=1), kind="stable")[:MAX_CLASSES])
    truth_K = counts_KK.sum(axis=1)
    shares_KK = counts_KK / np.maximum(truth_K, 1)[:, None]
    names = [shortened(str(records.classes[label])) for label in shown]
    image = _heat_map(shares_KK[np.ix_(shown, shown)], names)
    left_out = len(records.classes) - len(shown)
    caption = (
        "Rows: the true class of a pixel; columns: what it was called, as a share of the row in percent."
        + (f" The {left_out} classes with the fewest pixels are not shown." if left_out else "")
    )
    return Drawing(
        "confusion", "Confusion of the classes", caption, as_png(titled(image, "confusion of the classes"))
    )


def _heat_map(shares_KK: NDArray[np.float64], names: Sequence[str]) -> Image.Image:
    side = 1.6 + CELL_IN * len(names)
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
        axis = figure.add_subplot()
        axis.imshow(shares_KK, cmap=matplotlib.colormaps["viridis"].resampled(24), vmin=0, vmax=1)
        ticks = range(len(names))
        axis.set_xticks(ticks, names, fontsize=8, rotation=90)
        axis.set_yticks(ticks, names, fontsize=8)
        axis.set(xlabel="predicted", ylabel="true")
        for row, column in np.argwhere(shares_KK >= 0.005):
            colour = "black" if shares_KK[row, column] > 0.6 else "white"
            text = f"{100 * shares_KK[row, column]:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
