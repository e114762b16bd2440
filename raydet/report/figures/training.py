"""Figures of training: curves, the loss gap, and scores against costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import stdev

from matplotlib.ticker import MaxNLocator
from scipy import stats

from raydet.metrics.names import VAL_LOSS
from raydet.report.analysis import Analysis
from raydet.report.figures.style import (
    ARM,
    CONTROL,
    CYCLE,
    MAX_ROWS,
    Figure,
    axes,
    cell_rows,
    omitted,
    shorten,
)
from raydet.report.findings import loss_gap
from raydet.report.study import CellRuns
from raydet.runs.results import RunResults
from raydet.stats.comparison import LEVEL

NUM_NAMED = 6
"""Points with names; the others are grey."""
MAX_CURVES = 8
"""Curves with colours; the others are grey."""
COSTS: tuple[tuple[str, str, str, Callable[[RunResults], float | None]], ...] = (
    ("parameters", "parameters, millions", "Parameters", lambda r: _scaled(r.parameters, 1e6)),
    ("operations", "forward operations per image, GFLOP", "Operations", lambda r: r.gflops),
    ("time", "training time, minutes", "Training time", lambda r: _scaled(r.loop_s, 60)),
    ("memory", "peak memory, GiB", "Memory", lambda r: _scaled(r.peak_memory_bytes, 2**30)),
)
"""Name, axis label, title, and value in a run's results."""


def curve_figures(analysis: Analysis) -> Iterator[Figure]:
    """Losses and scores over epochs, and the final loss gap."""
    cells = (*analysis.results.controls, *analysis.results.arms)
    metric = analysis.results.study.decider.name
    yield _curves(cells, "loss", "training loss", "loss")
    if any(_history(cell, VAL_LOSS.name) for cell in cells):
        yield _curves(cells, VAL_LOSS.name, "validation loss", VAL_LOSS.name)
    yield _curves(cells, metric, metric, "metric")
    gaps = [(cell, gap) for cell in cells if (gap := cell.mean_of(loss_gap)) is not None]
    if gaps:
        yield _gap_bars(gaps)


def cost_figures(analysis: Analysis) -> Iterator[Figure]:
    """Scores against costs, without those that are unknown or equal for all cells."""
    cells = (*analysis.results.controls, *analysis.results.arms)
    metric = analysis.results.study.decider.name
    for name, label, title, cost in COSTS:
        points = [(value, cell) for cell in cells if (value := cell.mean_of(cost)) is not None]
        if len({value for value, _ in points}) > 1:
            yield _against_cost(name, label, title, points, metric)


def _history(cell: CellRuns, column: str) -> list[tuple[int, float]]:
    """Epochs, with means over the runs."""
    values: dict[int, list[float]] = {}
    for run in cell.runs:
        for row in () if run.results is None else run.results.history:
            if (value := row[column]) is not None:
                values.setdefault(row.epoch, []).append(value)
    return [(epoch, sum(mine) / len(mine)) for epoch, mine in sorted(values.items())]


def _curves(cells: Sequence[CellRuns], column: str, label: str, name: str) -> Figure:
    canvas, (plot,) = axes(3.4)
    best = sorted(cells, key=lambda cell: -cell.utility)[:MAX_CURVES]
    for cell in cells:
        if cell not in best and (curve := _history(cell, column)):
            plot.plot(*zip(*curve, strict=True), color="#d0d0d0", linewidth=0.7, zorder=1)
    for colour, cell in zip(CYCLE, best, strict=False):
        if curve := _history(cell, column):
            style = "--" if cell.cell.is_control else "-"
            short = shorten(cell.name, 24)
            plot.plot(*zip(*curve, strict=True), style, color=colour, label=short, zorder=2)
    plot.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.set_xlabel("epoch")
    plot.set_ylabel(label)
    plot.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    rest = "; the others are grey" if len(cells) > len(best) else ""
    return Figure(
        f"curves_{name}",
        f"Over the epochs: {label}",
        f"Means over seeds of the {len(best)} cells with the best final score{rest}; controls are dashed.",
        canvas,
    )


def _gap_bars(gaps: Sequence[tuple[CellRuns, float]]) -> Figure:
    rows = sorted(gaps, key=lambda row: -row[1])[:MAX_ROWS]
    canvas, plot, positions = cell_rows([cell.name for cell, _ in rows])
    for y, (cell, gap) in zip(positions, rows, strict=True):
        plot.barh(y, gap, color=CONTROL if cell.cell.is_control else ARM, height=0.7, alpha=0.85)
        per_run = (loss_gap(run.results) for run in cell.runs)
        runs = [value for value in per_run if value is not None]
        if len(runs) > 1:
            half = float(stats.t.isf((1 - LEVEL) / 2, len(runs) - 1)) * stdev(runs) / math.sqrt(len(runs))
            plot.plot([gap - half, gap + half], [y, y], color="black", linewidth=1.2)
        plot.plot(runs, [y] * len(runs), "o", color="white", mec="black", ms=3.2)
    plot.set_xlabel("validation loss minus training loss, last epoch")
    plot.grid(visible=False, axis="y")
    return Figure(
        "gap",
        "Overfitting: the gap between validation and training",
        "Bars are means over seeds, points single runs, lines 95 % intervals over trainings (unknown for one run); "
        "grey: controls. The training loss is that of augmented images during the last epoch, so the gap may be "
        "negative early on." + omitted(len(gaps) - len(rows)),
        canvas,
    )


def _against_cost(
    name: str, label: str, title: str, points: Sequence[tuple[float, CellRuns]], metric: str
) -> Figure:
    canvas, (plot,) = axes(3.4)
    ranked = sorted(points, key=lambda point: -point[1].utility)
    for value, cell in ranked[NUM_NAMED:]:
        plot.plot([value], [cell.mean], "o", color="#d0d0d0", mec=CONTROL, ms=4)
    # Names are in a legend beside the plot: next to the points they would overlap.
    for colour, (value, cell) in zip(CYCLE, ranked[:NUM_NAMED], strict=False):
        marker, short = "s" if cell.cell.is_control else "o", shorten(cell.name, 24)
        plot.plot([value], [cell.mean], marker, color=colour, ms=6, alpha=0.85, label=short)
    plot.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    plot.margins(x=0.1, y=0.1)
    plot.set_xlabel(label)
    plot.set_ylabel(metric)
    return Figure(
        f"cost_{name}",
        f"{title} against {metric}",
        f"Means over seeds. The {min(NUM_NAMED, len(points))} best are named, controls as squares; the others are "
        "grey. Up and to the left is better.",
        canvas,
    )


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
