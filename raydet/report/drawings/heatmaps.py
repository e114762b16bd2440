"""Attention as a figure: the inputs of the detector, and below them a column of heat maps for each stage.

All heat maps share one colour scale. Drawing needs no display, and ignores pyplot's global state and user settings.

Legend: C channels, H W map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from raydet.ops.colours import as_colours
from raydet.report.drawings.attention import Attention, StageAttention
from raydet.report.drawings.panels import titled

DPI = 100
CELL_WIDTH_IN = 2.5
CELL_HEIGHT_IN = (1.0, 4.0)
"""Smallest and largest height of a map, for wide and tall images."""
HEADING_IN = 0.45
SCALE_IN = 0.7
"""Width of the colour scale."""
STRIP_IN = 1.3
"""Height of the plot of channels."""
MIN_SPAN = 0.1
"""Smallest range of the colour scale, so that small differences look small."""
COLOURS = matplotlib.colormaps["viridis"].resampled(24)
"""Few colours, which survive the palette of `as_png`."""


def draw_attention(
    attention: Attention, *, unused: Collection[str] = (), display_name: Callable[[str], str] = str
) -> Image.Image | None:
    """Draw the figure; None if no fusion has attention.

    Args:
        unused: modalities that the detector does not use; their panels say so.
        display_name: maps a modality to the name in its heading.
    """
    if not attention.stages:
        return None
    with matplotlib.style.context("default"):
        headings = {
            name: display_name(name) + ("\n(not used by the detector)" if name in unused else "")
            for name in attention.sample.modalities
        }
        figure = _figure(attention, headings)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return titled(image, f"image {attention.sample.image_id}")


def value_range(attention: Attention) -> tuple[float, float]:
    """Ends of the common colour scale: the range of all maps, rounded outwards to 0.05, at least MIN_SPAN apart."""
    values = np.concatenate([x.ravel() for stage in attention.stages for x in stage.maps.values()])
    # The tolerance is needed because 0.8 in single precision is a little more than 0.8.
    low = math.floor(float(values.min()) * 20 + 1e-6) / 20
    high = math.ceil(float(values.max()) * 20 - 1e-6) / 20
    padding = max(0.0, MIN_SPAN - (high - low)) / 2
    return low - padding, high + padding


def _figure(attention: Attention, headings: Mapping[str, str]) -> Figure:
    """Rows: modalities, maps, channels; a column for each stage, and a narrow one for the colour scale."""
    height, width = attention.sample.valid_hw
    map_in = float(np.clip((CELL_WIDTH_IN - 0.2) * height / width, *CELL_HEIGHT_IN)) + HEADING_IN
    num_maps = max(len(stage.maps) for stage in attention.stages)
    columns = max(len(attention.sample.modalities), len(attention.stages))
    heights = [map_in] * (1 + num_maps) + [STRIP_IN]
    figure = Figure(figsize=(CELL_WIDTH_IN * columns + SCALE_IN, sum(heights)), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(
        len(heights), columns + 1, height_ratios=heights, width_ratios=[*[1.0] * columns, 0.05]
    )
    for column, (name, x_CHW) in enumerate(attention.sample.modalities.items()):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(as_colours(x_CHW[:, :height, :width]), interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(headings[name], fontsize=9)
    limits = value_range(attention)
    for column, stage in enumerate(attention.stages):
        for row, name in enumerate(stage.maps, 1):
            _draw_map(figure.add_subplot(grid[row, column]), attention, stage, name, limits)
        _draw_channels(figure.add_subplot(grid[-1, column]), stage)
    scale = figure.add_subplot(grid[1:-1, -1])
    figure.colorbar(ScalarMappable(Normalize(*limits), COLOURS), cax=scale)
    scale.set_ylabel("weight, one scale for all maps", fontsize=8)
    scale.tick_params(labelsize=8)
    return figure


def _draw_map(
    axis: Axes, attention: Attention, stage: StageAttention, name: str, limits: tuple[float, float]
) -> None:
    map_HW = stage.maps[name]
    height, width = attention.sample.valid_hw
    extent = 0, map_HW.shape[1] * stage.stride_hw[1], map_HW.shape[0] * stage.stride_hw[0], 0
    axis.imshow(map_HW, cmap=COLOURS, vmin=limits[0], vmax=limits[1], extent=extent, interpolation="nearest")
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.set_title(
        f"stage {stage.stage}: {name}\nmean {map_HW.mean():.2f}, {map_HW.min():.2f} to {map_HW.max():.2f}",
        fontsize=8,
    )


def _draw_channels(axis: Axes, stage: StageAttention) -> None:
    axis.tick_params(labelsize=7)
    if not stage.channel_weights:
        axis.set_axis_off()
        return
    if stage.switch_below is None:
        for name, weights_C in stage.channel_weights.items():
            axis.plot(np.sort(weights_C)[::-1], label=name, linewidth=1.5)
        axis.set(ylim=(0, 1))
        axis.set_title("channel weights, sorted", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
        return
    strips = np.stack(list(stage.switched.values()))
    axis.imshow(strips, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.set_yticks([])
    shares = "\n".join(f"{name}: {is_C.mean():.0%}" for name, is_C in stage.switched.items())
    axis.set_title(f"black: switched channels, from the top\n{shares}", fontsize=8)
