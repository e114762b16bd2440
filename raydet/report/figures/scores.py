"""Scores of cells with their intervals, and differences between cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.colors import Normalize

from raydet.report.analysis import Analysis
from raydet.report.figures.style import (
    ACCENT,
    ARM,
    BASELINE,
    CONTROL,
    CYCLE,
    MOST_LABELS,
    Figure,
    axes,
    left_out,
    name_rows,
    row_height,
    shortened,
)
from raydet.report.findings import Estimate, Versus

SIZES = ("small", "medium", "large")


def score_figures(analysis: Analysis) -> Iterator[Figure]:
    """Everything about scores."""
    for phase, estimates in analysis.estimates.items():
        if estimates:
            yield _bars(analysis, phase, estimates)
        if len(estimates) > 2 and phase != "controls":
            yield _thresholds(phase, estimates)
            if any(_by_size(estimate) for estimate in estimates):
                yield _sizes(phase, estimates)
    if analysis.against_control and analysis.best_control is not None:
        yield _differences("against_control", analysis.best_control.name, analysis.against_control)
    is_same = analysis.baseline is not None and analysis.baseline == analysis.best_control
    if analysis.against_baseline and analysis.baseline is not None and not is_same:
        yield _differences("against_baseline", analysis.baseline.name, analysis.against_baseline)
    if analysis.pairs:
        yield _pairs(analysis)


def _ranked(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Best first, as many as can be named."""
    return sorted(estimates, key=lambda estimate: -estimate.cell.mean)[:MOST_LABELS]


def _bars(analysis: Analysis, phase: str, estimates: Sequence[Estimate]) -> Figure:
    rows = _ranked(estimates)
    metric, control = analysis.results.study.metric, analysis.best_control
    canvas, (plot,) = axes(row_height(len(rows)))
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows, strict=True):
        is_baseline = analysis.baseline is not None and row.cell.name == analysis.baseline.name
        colour = BASELINE if is_baseline else CONTROL if row.cell.cell.is_control else ARM
        plot.barh(place, row.cell.mean, color=colour, height=0.72, alpha=0.85)
        if row.low is not None and row.high is not None:
            plot.plot([max(0.0, row.low), row.high], [place, place], color="black", linewidth=1.2)
        plot.plot(row.cell.scores, [place] * len(row.cell.scores), "o", color="white", mec="black", ms=3.2)
    if control is not None and phase != "controls":
        plot.axvline(control.mean, color=CONTROL, linestyle="--", linewidth=1.2)
        plot.annotate(
            f"best control: {shortened(control.name, 20)}",
            (control.mean, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color="#555555",
            fontsize=8,
        )
    name_rows(plot, [row.cell.name for row in rows])
    plot.set_xlabel(metric)
    plot.set_xlim(left=0)
    plot.grid(visible=False, axis="y")
    return Figure(
        f"scores_{phase}",
        f"{metric} of every cell: {phase}",
        "Bars are means over seeds, points single runs, lines 95 % intervals of training and test images, best "
        "first. Grey: controls; green: the baseline." + left_out(len(estimates) - len(rows)),
        canvas,
    )


def _thresholds(phase: str, estimates: Sequence[Estimate]) -> Figure:
    rows = _ranked(estimates)
    canvas, (plot,) = axes(row_height(len(rows)))
    places = list(range(len(rows), 0, -1))
    for metric, label, colour in (("mAP_50", "IoU 0.50", CYCLE[0]), ("mAP_75", "IoU 0.75", CYCLE[1])):
        values = [row.cell.final(metric) for row in rows]
        known = [(value, place) for value, place in zip(values, places, strict=True) if value is not None]
        plot.plot([v for v, _ in known], [p for _, p in known], "o-", color=colour, label=label, linewidth=1)
    name_rows(plot, [row.cell.name for row in rows])
    plot.set_xlabel("AP")
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return Figure(
        f"thresholds_{phase}",
        f"AP at loose and strict overlap: {phase}",
        "In the order of the figure before; the distance between the lines is what boxes lose that fit badly."
        + left_out(len(estimates) - len(rows)),
        canvas,
    )


def _by_size(estimate: Estimate) -> list[float | None]:
    values = [estimate.cell.final(f"mAP_{size}") for size in SIZES]
    return values if any(value is not None for value in values) else []


def _sizes(phase: str, estimates: Sequence[Estimate]) -> Figure:
    rows = _ranked(estimates)
    canvas, (plot,) = axes(row_height(len(rows)))
    places = list(range(len(rows), 0, -1))
    for size, colour, marker in zip(SIZES, CYCLE, "osD", strict=False):
        values = [row.cell.final(f"mAP_{size}") for row in rows]
        known = [(value, place) for value, place in zip(values, places, strict=True) if value is not None]
        if known:
            plot.plot(
                [v for v, _ in known], [p for _, p in known], marker, color=colour, label=size, alpha=0.85
            )
    name_rows(plot, [row.cell.name for row in rows])
    plot.set_xlabel("AP")
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return Figure(
        f"sizes_{phase}",
        f"AP by object size: {phase}",
        "Means over seeds. Bins without an object in the test images are left out."
        + left_out(len(estimates) - len(rows)),
        canvas,
    )


def _differences(name: str, other: str, family: Sequence[Versus]) -> Figure:
    rows = sorted(family, key=lambda versus: -versus.comparison.difference)[:MOST_LABELS]
    canvas, (plot,) = axes(row_height(len(rows)))
    colours = {"A is better": BASELINE, "B is better": ACCENT}
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows, strict=True):
        found, colour = row.comparison, colours.get(row.verdict, CONTROL)
        if found.low is not None and found.high is not None:
            plot.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
        plot.plot([found.difference], [place], "o", color=colour, ms=5)
    plot.axvline(0.0, color="black", linewidth=0.8)
    name_rows(plot, [row.a for row in rows])
    plot.set_xlabel(f"difference from {other}")
    return Figure(
        f"differences_{name}",
        f"Every arm less {other}",
        "Green: better; orange: worse; grey: not distinguishable, after correction for the number of comparisons. "
        "Lines are the 95 % intervals of single comparisons." + left_out(len(family) - len(rows)),
        canvas,
    )


def _pairs(analysis: Analysis) -> Figure:
    order = sorted((*analysis.results.controls, *analysis.results.arms), key=lambda cell: -cell.mean)
    names = [cell.name for cell in order]
    found = {(versus.a, versus.b): (versus, 1.0) for versus in analysis.pairs}
    found |= {(versus.b, versus.a): (versus, -1.0) for versus in analysis.pairs}
    size = len(names)
    canvas, (plot,) = axes(1.4 + 0.3 * size)
    values = [[_signed(found.get((row, column))) for column in names] for row in names]
    largest = max((abs(value) for line in values for value in line), default=0.0) or 1.0
    image = plot.imshow(values, cmap="PuOr_r", norm=Normalize(-largest, largest))
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            versus = found.get((row, column))
            if versus is not None and versus[0].verdict in ("A is better", "B is better"):
                plot.plot(j, i, "o", color="black", ms=3)
    plot.set_xticks(range(size), [shortened(name, 20) for name in names], rotation=60, ha="right")
    plot.set_yticks(range(size), [shortened(name, 20) for name in names])
    plot.grid(visible=False)
    bar = canvas.colorbar(image, ax=plot, shrink=0.8)
    bar.set_label(f"row less column, {analysis.results.study.metric}")
    return Figure(
        "pairs",
        "Which cells can be told apart",
        "Colour: difference of the means, row less column. A dot: distinguishable after correction for all pairs.",
        canvas,
    )


def _signed(found: tuple[Versus, float] | None) -> float:
    return 0.0 if found is None else found[0].comparison.difference * found[1]
