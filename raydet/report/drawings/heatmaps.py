"""Attention as a figure: what the detector was given, and below it a column of heat maps for each stage.

All heat maps share one colour scale. Matplotlib draws without a display, without pyplot's global state and without the
user's own settings.

Legend: C channels, H W map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

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
"""Of a map: least and most, for wide and tall images."""
TEXT_IN = 0.45
"""For a heading."""
SCALE_IN = 0.7
"""Width of the colour scale."""
STRIP_IN = 1.3
"""Height of what is told about channels."""
LEAST_SPAN = 0.1
"""Of the colour scale: smaller differences shall look small."""
COLOURS = matplotlib.colormaps["viridis"].resampled(24)
"""Few, so that they survive the palette of `as_png`."""


def draw_attention(
    attention: Attention, *, unread: Collection[str] = (), called: Callable[[str], str] = str
) -> Image.Image | None:
    """The figure, or None where no fusion has anything to show.

    Args:
        unread: modalities that the detector was not given; their panels say so.
        called: what to call a modality.
    """
    if not attention.stages:
        return None
    with matplotlib.style.context("default"):
        figure = _figure(attention, unread, called)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    return titled(image, f"image {attention.sample.image_id}")


def value_range(attention: Attention) -> tuple[float, float]:
    """Ends of the common colour scale: all values of all maps, rounded outwards to 0.05, at least LEAST_SPAN apart."""
    values = np.concatenate([x.ravel() for stage in attention.stages for x in stage.maps.values()])
    # The millionth: single precision's 0.8 is a little more than 0.8.
    low, high = (
        math.floor(float(values.min()) * 20 + 1e-6) / 20,
        math.ceil(float(values.max()) * 20 - 1e-6) / 20,
    )
    lacking = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - lacking, high + lacking


def _figure(attention: Attention, unread: Collection[str], called: Callable[[str], str]) -> Figure:
    """Rows: modalities, maps, channels; a column for each stage, and a narrow one for the colour scale."""
    height, width = attention.sample.valid_hw
    map_in = float(np.clip((CELL_WIDTH_IN - 0.2) * height / width, *CELL_HEIGHT_IN)) + TEXT_IN
    num_maps = max(len(stage.maps) for stage in attention.stages)
    columns = max(len(attention.sample.modalities), len(attention.stages))
    heights = [map_in] * (1 + num_maps) + [STRIP_IN]
    figure = Figure(figsize=(CELL_WIDTH_IN * columns + SCALE_IN, sum(heights)), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(
        len(heights), columns + 1, height_ratios=heights, width_ratios=[*[1.0] * columns, 0.05]
    )
    for column, name in enumerate(attention.sample.modalities):
        axis = figure.add_subplot(grid[0, column])
        _draw_input(axis, attention, name, heading=_heading(called(name), is_unread=name in unread))
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


def _heading(name: str, *, is_unread: bool) -> str:
    return f"{name}\n(not given to the detector)" if is_unread else name


def _draw_input(axis: Axes, attention: Attention, name: str, *, heading: str) -> None:
    height, width = attention.sample.valid_hw
    axis.imshow(as_colours(attention.sample.modalities[name][:, :height, :width]), interpolation="nearest")
    axis.set_axis_off()
    axis.set_title(heading, fontsize=9)


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
    switched = stage.switched
    axis.imshow(
        np.stack(list(switched.values())),
        cmap="Greys",
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
    )
    axis.set_yticks([])
    shares = "\n".join(f"{name}: {is_C.mean():.0%}" for name, is_C in switched.items())
    axis.set_title(f"black: channels that switch, from above\n{shares}", fontsize=8)
