"""Figures of the effects of factors: alone, two at a time, and in every combination."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from raydet.report.analysis import Analysis
from raydet.report.figures.style import ARM, CYCLE, Figure, axes, omitted, rows_figure, shorten
from raydet.report.findings import Effect, short_name, value_label
from raydet.report.study import CellRuns
from raydet.tune.study import Factor, Value

MAX_COLUMNS = 30


def effect_figures(analysis: Analysis) -> Iterator[Figure]:
    """Figures for every phase that varies two or more factors."""
    by_phase: dict[str, list[Effect]] = {}
    for effect in analysis.effects:
        by_phase.setdefault(effect.phase, []).append(effect)
    for phase, effects in by_phase.items():
        if len(effects) > 1:
            cells = [cell for cell in analysis.results.cells[phase] if not cell.cell.is_control]
            factors, metric = [effect.factor for effect in effects], analysis.results.study.decider.name
            yield _main_effects(phase, effects, metric)
            yield _interactions(phase, factors, cells, metric)
            yield _heat_map(phase, factors, cells, metric)


def _main_effects(phase: str, effects: Sequence[Effect], metric: str) -> Figure:
    levels = [(effect, level) for effect in effects for level in effect.levels]
    canvas, plot, positions = rows_figure(
        [f"{short_name(effect.factor)} = {level.label}" for effect, level in levels]
    )
    for y, (_, level) in zip(positions, levels, strict=True):
        if level.low is not None and level.high is not None:
            plot.plot([level.low, level.high], [y, y], color=ARM, linewidth=2)
        plot.plot([level.mean], [y], "o", color=ARM, ms=5)
    end = 0
    for effect in effects[:-1]:
        end += len(effect.levels)
        plot.axhline(len(levels) - end + 0.5, color="#cccccc", linewidth=0.8)
    plot.set_xlabel(f"{metric}, mean over all cells with this value")
    return Figure(
        f"effects_{phase}",
        f"Each factor alone: {phase}",
        "Points are means over all other factors and seeds, lines their 95 % intervals.",
        canvas,
    )


def _interactions(phase: str, factors: Sequence[Factor], cells: Sequence[CellRuns], metric: str) -> Figure:
    # Factors with few values first: their lines are easier to distinguish.
    pairs = sorted(combinations(factors, 2), key=lambda pair: sum(len(_present(f, cells)) for f in pair))[:3]
    canvas, plots = axes(2.9, columns=len(pairs), share_y=True)
    for plot, (across, lines) in zip(plots, pairs, strict=True):
        values = _present(across, cells)
        for colour, line in zip(CYCLE * 4, _present(lines, cells), strict=False):
            means = [_mean(cells, {across.path: value, lines.path: line}) for value in values]
            known = {i: mean for i, mean in enumerate(means) if mean is not None}
            label = f"{lines.letter or short_name(lines)} {value_label(line)}"
            plot.plot(list(known), list(known.values()), "o-", color=colour, label=label)
        plot.set_xticks(range(len(values)), [shorten(value_label(value), 12) for value in values])
        plot.set_xlabel(short_name(across))
        plot.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8, title=short_name(lines)
        )
    plots[0].set_ylabel(metric)
    return Figure(
        f"interactions_{phase}",
        f"Two factors at a time: {phase}",
        "Parallel lines mean no interaction. Means over seeds and the other factors; the table of effects says which "
        "slopes differ by more than chance.",
        canvas,
    )


def _heat_map(phase: str, factors: Sequence[Factor], cells: Sequence[CellRuns], metric: str) -> Figure:
    rows_factor, *others = factors
    rows = _present(rows_factor, cells)
    every = list(dict.fromkeys(tuple(cell.cell.values[factor.path] for factor in others) for cell in cells))
    columns = every[:MAX_COLUMNS]
    table = [
        [
            _mean(cells, {rows_factor.path: row} | dict(zip((f.path for f in others), column, strict=True)))
            for column in columns
        ]
        for row in rows
    ]
    canvas, (plot,) = axes(1.7 + 0.42 * len(rows))
    image = plot.imshow([[float("nan") if v is None else v for v in line] for line in table], aspect="auto")
    known = [value for line in table for value in line if value is not None]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    for i, line in enumerate(table):
        for j, value in enumerate(line):
            if value is not None and len(columns) <= 12:
                colour = "black" if value > middle else "white"
                plot.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
    labels = ["_".join(f.code(value) for f, value in zip(others, column, strict=True)) for column in columns]
    plot.set_xticks(range(len(columns)), [shorten(label, 18) for label in labels], rotation=45, ha="right")
    plot.set_yticks(range(len(rows)), [value_label(row) for row in rows])
    plot.set_ylabel(short_name(rows_factor))
    plot.grid(visible=False)
    canvas.colorbar(image, ax=plot).set_label(metric)
    letters = [f"{factor.letter} = " if factor.letter else "" for factor in others]
    legend = ", ".join(letter + short_name(factor) for letter, factor in zip(letters, others, strict=True))
    return Figure(
        f"heat_map_{phase}",
        f"Every combination: {phase}",
        f"Means over seeds; column labels: {legend}. Mind the noise: neighbouring colours are rarely "
        "distinguishable." + omitted(len(every) - len(columns)),
        canvas,
    )


def _present(factor: Factor, cells: Sequence[CellRuns]) -> list[Value]:
    seen = [cell.cell.values[factor.path] for cell in cells]
    return [value for value in factor.values if value in seen]


def _mean(cells: Sequence[CellRuns], values: dict[str, Value]) -> float | None:
    means = [
        cell.mean for cell in cells if all(cell.cell.values[path] == value for path, value in values.items())
    ]
    return sum(means) / len(means) if means else None
