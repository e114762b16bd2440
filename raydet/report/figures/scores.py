"""Figures of scores: cells with their intervals, AP by overlap and object size, differences between cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.colors import Normalize

from raydet.metrics.names import MetricGroup, groups_of
from raydet.report.analysis import Analysis
from raydet.report.figures.style import (
    ACCENT,
    ARM,
    BASELINE,
    CONTROL,
    CYCLE,
    MAX_ROWS,
    Figure,
    axes,
    cell_rows,
    omitted,
    shorten,
)
from raydet.report.findings import Estimate, PairComparison

MARKERS = "osD^v"
AGAINST_CONTROL = "differences_against_control"
"""Name of the figure that sums up a study."""


def score_figures(analysis: Analysis) -> Iterator[Figure]:
    """All figures of scores."""
    metric = analysis.results.study.decider.name
    for phase, estimates in analysis.estimates.items():
        if estimates:
            yield _bars(analysis, phase, estimates)
        if len(estimates) > 2 and phase != "controls":
            for group in groups_of(analysis.results.study.base.task):
                yield from _group(group, phase, estimates)
    if analysis.against_control and analysis.best_control is not None:
        other = f"the best control {shorten(analysis.best_control.name)}"
        yield _differences(
            AGAINST_CONTROL, f"{metric} of every arm minus that of {other}", analysis.against_control
        )
    is_same = analysis.baseline is not None and analysis.baseline == analysis.best_control
    if analysis.against_baseline and analysis.baseline is not None and not is_same:
        other = f"the baseline {shorten(analysis.baseline.name)}"
        title = f"{metric} of every arm minus that of {other}"
        yield _differences("differences_against_baseline", title, analysis.against_baseline)
    if analysis.pairs:
        yield _pairs(analysis)


def _ranked(estimates: Sequence[Estimate]) -> list[Estimate]:
    """The best cells, as many as fit into a figure."""
    return sorted(estimates, key=lambda estimate: -estimate.cell.utility)[:MAX_ROWS]


def _bars(analysis: Analysis, phase: str, estimates: Sequence[Estimate]) -> Figure:
    rows = _ranked(estimates)
    metric, control = analysis.results.study.decider.name, analysis.best_control
    canvas, plot, positions = cell_rows([row.cell.name for row in rows])
    for y, row in zip(positions, rows, strict=True):
        is_baseline = analysis.baseline is not None and row.cell.name == analysis.baseline.name
        colour = BASELINE if is_baseline else CONTROL if row.cell.cell.is_control else ARM
        plot.barh(y, row.cell.mean, color=colour, height=0.72, alpha=0.85)
        if row.low is not None and row.high is not None:
            plot.plot([max(0.0, row.low), row.high], [y, y], color="black", linewidth=1.2)
        plot.plot(row.cell.scores, [y] * len(row.cell.scores), "o", color="white", mec="black", ms=3.2)
    if control is not None and phase != "controls":
        plot.axvline(control.mean, color=CONTROL, linestyle="--", linewidth=1.2)
        plot.annotate(
            f"best control: {shorten(control.name, 20)}",
            (control.mean, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color="#555555",
            fontsize=8,
        )
    plot.set_xlabel(metric)
    plot.set_xlim(left=0)
    plot.grid(visible=False, axis="y")
    return Figure(
        f"scores_{phase}",
        f"{metric} of every cell: {phase}",
        "Bars are means over seeds, points single runs, lines 95 % intervals (training and test images), best "
        "first. Grey: controls; green: the baseline." + omitted(len(estimates) - len(rows)),
        canvas,
    )


def _group(group: MetricGroup, phase: str, estimates: Sequence[Estimate]) -> Iterator[Figure]:
    """One row per cell and one marker per metric; nothing where no metric is known."""
    rows = _ranked(estimates)
    canvas, plot, positions = cell_rows([row.cell.name for row in rows])
    is_empty = True
    for (metric, label), colour, marker in zip(group.labels.items(), CYCLE, MARKERS, strict=False):
        values = [row.cell.final(metric) for row in rows]
        known = [(value, y) for value, y in zip(values, positions, strict=True) if value is not None]
        if known:
            plot.plot(
                *zip(*known, strict=True),
                marker="o" if group.is_ordered else marker,
                linestyle="-" if group.is_ordered else "",
                linewidth=1,
                color=colour,
                label=label,
                alpha=1.0 if group.is_ordered else 0.85,
            )
            is_empty = False
    if is_empty:
        return
    plot.set_xlabel(group.axis)
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(group.labels))
    caption = group.caption + omitted(len(estimates) - len(rows))
    yield Figure(f"{group.name}_{phase}", f"{group.title}: {phase}", caption, canvas)


def _differences(name: str, title: str, family: Sequence[PairComparison]) -> Figure:
    """A forest plot: one row per arm, its difference and interval as a line and in numbers."""
    rows = sorted(family, key=lambda pair: -pair.comparison.difference)[:MAX_ROWS]
    canvas, plot, positions = cell_rows([row.a for row in rows])
    colours = {"A is better": BASELINE, "B is better": ACCENT}
    for y, row in zip(positions, rows, strict=True):
        found, colour = row.comparison, colours.get(row.verdict, CONTROL)
        text = f"{found.difference:+.4f}"
        if found.low is not None and found.high is not None:
            plot.plot([found.low, found.high], [y, y], color=colour, linewidth=2)
            text += f"  [{found.low:+.4f}, {found.high:+.4f}]"
        plot.plot([found.difference], [y], "o", color=colour, ms=5)
        plot.text(1.02, y, text, transform=plot.get_yaxis_transform(), va="center", fontsize=8)
    plot.axvline(0.0, color="black", linewidth=0.8)
    plot.set_xlabel("difference, to the right is better")
    return Figure(
        name,
        title,
        "Green: better; orange: worse; grey: not distinguishable, after correction for the number of comparisons. "
        "Lines and brackets are the 95 % intervals of single comparisons." + omitted(len(family) - len(rows)),
        canvas,
    )


def _pairs(analysis: Analysis) -> Figure:
    cells = sorted((*analysis.results.controls, *analysis.results.arms), key=lambda cell: -cell.utility)
    names = [cell.name for cell in cells]
    found = {(pair.a, pair.b): (pair, 1.0) for pair in analysis.pairs}
    found |= {(pair.b, pair.a): (pair, -1.0) for pair in analysis.pairs}
    size = len(names)
    canvas, (plot,) = axes(1.4 + 0.3 * size)
    values = [[0.0] * size for _ in names]
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            if (row, column) in found:
                pair, sign = found[row, column]
                values[i][j] = pair.comparison.difference * sign
                if pair.is_different:
                    plot.plot(j, i, "o", color="black", ms=3)
    largest = max((abs(value) for line in values for value in line), default=0.0) or 1.0
    image = plot.imshow(values, cmap="PuOr_r", norm=Normalize(-largest, largest))
    plot.set_xticks(range(size), [shorten(name, 20) for name in names], rotation=60, ha="right")
    plot.set_yticks(range(size), [shorten(name, 20) for name in names])
    plot.grid(visible=False)
    canvas.colorbar(image, ax=plot, shrink=0.8).set_label(
        f"row minus column, {analysis.results.study.decider.name}"
    )
    return Figure(
        "pairs",
        "Distinguishable pairs of cells",
        "Colour: difference of the means, row minus column. A dot: distinguishable after correction for all pairs.",
        canvas,
    )
