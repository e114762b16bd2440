"""What the factors of a phase do: alone, two at a time, and in every combination."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from raydet.report.analysis import Analysis
from raydet.report.figures.style import ARM, CYCLE, Figure, axes, left_out, row_height, shortened
from raydet.report.findings import Effect, short, value_label
from raydet.report.study import CellRuns
from raydet.tune.study import Factor, Value

MOST_COLUMNS = 30


def effect_figures(analysis: Analysis) -> Iterator[Figure]:
    """Of every phase that varies two or more factors."""
    by_phase: dict[str, list[Effect]] = {}
    for effect in analysis.effects:
        by_phase.setdefault(effect.phase, []).append(effect)
    for phase, effects in by_phase.items():
        if len(effects) > 1:
            cells = [cell for cell in analysis.results.cells[phase] if not cell.cell.is_control]
            metric = analysis.results.study.metric
            yield _main_effects(phase, effects, metric)
            yield _interactions(phase, [effect.factor for effect in effects], cells, metric)
            yield _heat_map(phase, [effect.factor for effect in effects], cells, metric)


def _main_effects(phase: str, effects: Sequence[Effect], metric: str) -> Figure:
    levels = [(effect, level) for effect in effects for level in effect.levels]
    canvas, (plot,) = axes(row_height(len(levels)))
    places = list(range(len(levels), 0, -1))
    for place, (_, level) in zip(places, levels, strict=True):
        if level.low is not None and level.high is not None:
            plot.plot([level.low, level.high], [place, place], color=ARM, linewidth=2)
        plot.plot([level.mean], [place], "o", color=ARM, ms=5)
    plot.set_yticks(places, [f"{short(effect.factor)} = {level.label}" for effect, level in levels])
    end = 0
    for effect in effects[:-1]:
        end += len(effect.levels)
        plot.axhline(len(levels) - end + 0.5, color="#cccccc", linewidth=0.8)
    plot.set_xlabel(f"{metric}, mean over all cells with this value")
    return Figure(
        f"effects_{phase}",
        f"Each factor by itself: {phase}",
        "Points are means over all other factors and seeds, lines their 95 % intervals.",
        canvas,
    )


def _interactions(phase: str, factors: Sequence[Factor], cells: Sequence[CellRuns], metric: str) -> Figure:
    # Those with few values first: their lines can be told apart.
    pairs = sorted(combinations(factors, 2), key=lambda pair: sum(len(_present(f, cells)) for f in pair))[:3]
    canvas, plots = axes(2.9, columns=len(pairs), share_y=True)
    for plot, (across, lines) in zip(plots, pairs, strict=True):
        values = _present(across, cells)
        for colour, line in zip(CYCLE * 4, _present(lines, cells), strict=False):
            means = [_mean(cells, {across.path: value, lines.path: line}) for value in values]
            known = [(i, mean) for i, mean in enumerate(means) if mean is not None]
            plot.plot(
                [i for i, _ in known],
                [mean for _, mean in known],
                "o-",
                color=colour,
                label=f"{lines.letter or short(lines)} {value_label(line)}",
            )
        plot.set_xticks(range(len(values)), [shortened(value_label(value), 12) for value in values])
        plot.set_xlabel(short(across))
        plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8, title=short(lines))
    plots[0].set_ylabel(metric)
    return Figure(
        f"interactions_{phase}",
        f"Two factors at a time: {phase}",
        "Parallel lines: the factors do not depend on one another. Means over seeds and the other factors; the table "
        "of interactions says which slopes differ by more than chance.",
        canvas,
    )


def _heat_map(phase: str, factors: Sequence[Factor], cells: Sequence[CellRuns], metric: str) -> Figure:
    rows_factor, *others = factors
    rows = _present(rows_factor, cells)
    every = list(dict.fromkeys(tuple(cell.cell.values[factor.path] for factor in others) for cell in cells))
    columns = every[:MOST_COLUMNS]
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
    plot.set_xticks(range(len(columns)), [shortened(label, 18) for label in labels], rotation=45, ha="right")
    plot.set_yticks(range(len(rows)), [value_label(row) for row in rows])
    plot.set_ylabel(short(rows_factor))
    plot.grid(visible=False)
    canvas.colorbar(image, ax=plot).set_label(metric)
    return Figure(
        f"heat_map_{phase}",
        f"Every combination: {phase}",
        f"Means over seeds; below each column {_letters(others)}. Mind the noise: neighbouring colours are rarely "
        "distinguishable." + left_out(len(every) - len(columns)),
        canvas,
    )


def _letters(factors: Sequence[Factor]) -> str:
    """What the letters of a column's name stand for."""
    return ", ".join(
        f"{factor.letter} = {short(factor)}" if factor.letter else short(factor) for factor in factors
    )


def _present(factor: Factor, cells: Sequence[CellRuns]) -> list[Value]:
    seen = [cell.cell.values[factor.path] for cell in cells]
    return [value for value in factor.values if value in seen]


def _mean(cells: Sequence[CellRuns], values: dict[str, Value]) -> float | None:
    means = [
        cell.mean for cell in cells if all(cell.cell.values[path] == value for path, value in values.items())
    ]
    return sum(means) / len(means) if means else None
