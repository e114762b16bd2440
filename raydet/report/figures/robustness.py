"""Figures of robustness: scores as one modality is corrupted, for every cell with a measured run."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.ticker import MaxNLocator

from raydet.report.analysis import Analysis
from raydet.report.figures.style import CYCLE, Figure, axes, shorten
from raydet.report.robustness import ABSENT, Robustness, read_robustness
from raydet.report.study import CellRuns

MAX_CELLS = 4


def measured_robustness(analysis: Analysis) -> list[tuple[CellRuns, Robustness]]:
    """Cells with the robustness of their first measured run, best cell first."""
    found = []
    for cell in sorted((*analysis.results.controls, *analysis.results.arms), key=lambda cell: -cell.utility):
        curves = (read_robustness(run_dir) for run_dir in cell.run_dirs)
        first = next((robustness for robustness in curves if robustness is not None), None)
        if first is not None:
            found.append((cell, first))
    return found


def robustness_figures(analysis: Analysis) -> Iterator[Figure]:
    """One figure per cell, one panel per modality."""
    for cell, robustness in measured_robustness(analysis)[:MAX_CELLS]:
        yield _curves(cell, robustness)


def _curves(cell: CellRuns, robustness: Robustness) -> Figure:
    modalities = list(dict.fromkeys(curve.modality for curve in robustness.curves))
    canvas, plots = axes(3.2, columns=len(modalities), share_y=True)
    for plot, modality in zip(plots, modalities, strict=True):
        mine = [curve for curve in robustness.curves if curve.modality == modality]
        for colour, curve in zip(CYCLE * 2, mine, strict=False):
            if curve.kind == ABSENT:
                plot.axhline(curve.scores[-1], color="black", linestyle=":", label="without it")
            else:
                plot.plot(range(len(curve.scores)), curve.scores, "o-", ms=3, color=colour, label=curve.kind)
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.set_ylim(bottom=0)
        plot.set_xlabel("severity")
        plot.set_title(modality, fontsize=9)
        plot.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=7, ncols=2)
    plots[0].set_ylabel(robustness.metric)
    return Figure(
        f"robustness_{cell.name}",
        f"Corrupted sensors: {shorten(cell.name)}",
        "One modality is corrupted at a time, the others are clean. One run.",
        canvas,
    )
