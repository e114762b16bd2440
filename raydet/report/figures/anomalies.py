"""Figures of anomalies: whether accuracy predicts how well anomalies are found, and the curves of scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scipy import stats

from raydet.metrics.anomaly_records import AnomalyRecords
from raydet.metrics.names import AUROC, PER_IMAGE_AUROC
from raydet.report.analysis import Analysis
from raydet.report.figures.style import ARM, CONTROL, CYCLE, Figure, axes

PROTOCOLS = {AUROC: "pooled", PER_IMAGE_AUROC: "mean over images"}
LEAST_RUNS = 4
"""Fewer have no rank correlation worth telling."""
MAX_POINTS = 2000
"""Of a curve; more would not be seen."""


def anomaly_figures(analysis: Analysis) -> Iterator[Figure]:
    """AUROC of anomalies against the metric that decides; none for studies that do not measure anomalies."""
    metric = analysis.results.study.decider
    cells = (*analysis.results.controls, *analysis.results.arms)
    finals = [(cell, run.results.final) for cell in cells for run in cell.runs if run.results is not None]
    if metric.name in PROTOCOLS or not any(final[AUROC] is not None for _, final in finals):
        return
    canvas, plots = axes(3.0, columns=len(PROTOCOLS), share_y=True)
    told = []
    for plot, (name, protocol) in zip(plots, PROTOCOLS.items(), strict=True):
        points = [
            (x, y, cell)
            for cell, final in finals
            if (x := final[metric.name]) is not None and (y := final[name]) is not None
        ]
        for x, y, cell in points:
            plot.plot(x, y, "o", color=CONTROL if cell.cell.is_control else ARM, ms=4, alpha=0.8)
        plot.set_xlabel(metric.label)
        plot.set_title(f"AUROC, {protocol}", fontsize=9)
        if len(points) >= LEAST_RUNS:
            found = stats.spearmanr([x for x, _, _ in points], [y for _, y, _ in points])
            told.append(f"{protocol} {found.statistic:+.2f} (p {found.pvalue:.2g})")
    plots[0].set_ylabel("AUROC of anomalies")
    ranks = f" Rank correlation over the runs: {', '.join(told)}." if told else ""
    yield Figure(
        "anomalies",
        f"Anomalies: AUROC against {metric.label}",
        "A point is a run; grey: controls. Pooled: all pixels of the test images are one set and need one threshold; "
        f"mean over images: each has thresholds of its own. The two are not comparable.{ranks}",
        canvas,
    )


def curves(found: Mapping[str, AnomalyRecords]) -> Figure:
    """ROC and precision-recall curves of scores, over all pixels.

    Args:
        found: records of the same images, by the score's name.
    """
    canvas, (roc, precision) = axes(3.6, columns=2)
    for colour, (name, records) in zip(CYCLE, found.items(), strict=False):
        curve = records.histogram().curve()
        step = max(1, len(curve.recall_P) // MAX_POINTS)
        roc.plot(
            curve.false_positive_rate_P[::step],
            curve.recall_P[::step],
            color=colour,
            label=name,
            linewidth=1.2,
        )
        precision.plot(curve.recall_P[::step], curve.precision_P[::step], color=colour, linewidth=1.2)
    roc.plot([0, 1], [0, 1], "--", color=CONTROL, linewidth=0.8)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1))
    precision.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    roc.legend(fontsize=7, loc="lower right")
    return Figure("curves", "ROC and precision-recall curves", "Over all pixels; dashed: chance.", canvas)
