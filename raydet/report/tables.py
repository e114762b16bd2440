"""The tables of the report, as text, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from statistics import median

from raydet.config import DetectionTask, Task
from raydet.metrics.names import metrics_of
from raydet.metrics.sizes import SizeBins
from raydet.report.analysis import Analysis
from raydet.report.figures.robustness import measured_robustness
from raydet.report.findings import Estimate, PairComparison, short_name, value_label
from raydet.report.study import CellRuns
from raydet.runs.results import RunResults
from raydet.stats.comparison import MAX_SEEDS, POWER, Comparison
from raydet.tune.study import CONFIRMATION

OTHER_METRICS = slice(1, 6)
"""Metrics of the task, beside its first, that have columns."""
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first `num_names` columns are words, the others numbers."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int = 1

    def as_csv(self) -> str:
        """CSV in which text that a spreadsheet would evaluate as a formula is escaped."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(map(_escape_formula, self.columns))
        for row in self.rows:
            writer.writerow([*map(_escape_formula, row[: self.num_names]), *row[self.num_names :]])
        return text.getvalue()

    def as_latex(self) -> str:
        """A LaTeX table; needs the package booktabs."""
        layout = "l" * self.num_names + "r" * (len(self.columns) - self.num_names)
        lines = [" & ".join(map(_escape_latex, row)) + r" \\" for row in (self.columns, *self.rows)]
        body = "\n".join([lines[0], r"\midrule", *lines[1:]])
        caption = _escape_latex(f"{self.title}. {self.caption}")
        return (
            f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{{layout}}}\n\\toprule\n"
            f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )


def tables(analysis: Analysis) -> list[Table]:
    """All tables, in the order of the report."""
    return [
        *(_cells(analysis, phase, estimates) for phase, estimates in analysis.estimates.items() if estimates),
        *_best(analysis),
        *_hypotheses(analysis),
        *_factors(analysis),
        *_robustness(analysis),
        *_equivalent_cells(analysis),
    ]


def _cells(analysis: Analysis, phase: str, estimates: Sequence[Estimate]) -> Table:
    study = analysis.results.study
    order = sorted(estimates, key=lambda estimate: -estimate.cell.utility)
    factors = [
        factor
        for factor in study.factors
        if factor.arms is None
        and len({estimate.cell.cell.values.get(factor.path) for estimate in estimates}) > 1
    ]
    against = analysis.against_control
    if phase == CONFIRMATION:  # without the runs by which the winner was selected
        against = () if analysis.confirmation is None else (analysis.confirmation,)
    pairs = {pair.a: pair for pair in against}
    defaults = {factor.path: factor.default for factor in study.factors}
    arms = [cell for cell in analysis.results.cells[phase] if not cell.cell.is_control]
    default = next((cell for cell in arms if cell.cell.values == defaults), None)
    unit, others = analysis.results.usage.unit, metrics_of(study.base.task)[OTHER_METRICS]
    rows = []
    for rank, estimate in enumerate(order, start=1):
        cell = estimate.cell
        values = [(factor, cell.cell.values.get(factor.path)) for factor in factors]
        gain = MISSING if default is None or cell is default else f"{cell.mean - default.mean:+.4f}"
        rows.append(
            [
                ("cell", cell.name),
                *((short_name(f), MISSING if value is None else value_label(value)) for f, value in values),
                ("rank", str(rank)),
                ("runs", str(len(cell.runs))),
                (study.decider.name, _number(cell.mean)),
                ("95 % interval", _interval(estimate, ".4f")),
                ("minus default", gain),
                *((metric.label, metric.text(cell.final(metric.name))) for metric in others),
                *_costs(cell, analysis.baseline),
                (unit, _number(None if cell.usage is None else cell.usage.by_unit[unit], 3)),
                ("against best control", _verdict(pairs.get(cell.name))),
            ]
        )
    return Table(
        f"cells_{phase}",
        f"Cells of {phase}",
        "A cell is one setting, trained once per seed; numbers are means over its runs. “minus default” is the score "
        "minus that of the cell of all defaults, “added” the parameters minus those of the baseline. "
        f"{_sizes(study.base.task)}Minutes and images/s are "
        "of training, with all its workers; other load on the machine is not accounted for. "
        f"{unit} are summed over the cell's runs, including failed attempts. A dash means not available.",
        tuple(header for header, _ in rows[0]),
        tuple(tuple(text for _, text in row) for row in rows),
        num_names=1 + len(factors),
    )


def _sizes(task: Task) -> str:
    return f"Objects are {SizeBins.of(task)}. " if isinstance(task, DetectionTask) else ""


def _costs(cell: CellRuns, baseline: CellRuns | None) -> list[tuple[str, str]]:
    mine = _scaled(cell, "parameters", 1)
    theirs = _scaled(baseline, "parameters", 1) if baseline else None
    return [
        ("parameters, M", _number(mine and mine / 1e6, 3)),
        ("added, M", MISSING if mine is None or theirs is None else f"{(mine - theirs) / 1e6:+.3f}"),
        ("GFLOP", _number(_scaled(cell, "gflops", 1), 2)),
        ("minutes", _number(_scaled(cell, "loop_s", 60), 1)),
        ("images/s", _number(cell.mean_of(_training_speed), 1)),
    ]


def _training_speed(results: RunResults) -> float | None:
    """Images per second without evaluation: the median over epochs, which other load affects less than the mean."""
    speeds = [row.images_per_s for row in results.history if row.images_per_s]
    return median(speeds) if speeds else None


def _best(analysis: Analysis) -> Iterator[Table]:
    """The best arm beside the cells that it must beat."""
    best = max(analysis.results.arms, key=lambda cell: cell.utility, default=None)
    sides = {"best control": analysis.best_control, "baseline": analysis.baseline}
    rivals = {label: cell for label, cell in sides.items() if best and cell and cell.name != best.name}
    if best is None or not rivals:
        return
    metric = analysis.results.study.decider.name
    others = metrics_of(analysis.results.study.base.task)[OTHER_METRICS]
    lines: list[tuple[str, Callable[[CellRuns], float | None], int]] = [
        (metric, lambda cell: cell.mean, 4),
        *((metric.label, partial(CellRuns.final, metric=metric.name), metric.digits) for metric in others),
        ("parameters, M", lambda cell: _scaled(cell, "parameters", 1e6), 3),
        ("GFLOP", lambda cell: _scaled(cell, "gflops", 1), 2),
        ("minutes", lambda cell: _scaled(cell, "loop_s", 60), 1),
        ("images/s in training", lambda cell: cell.mean_of(_training_speed), 1),
        ("peak memory, GiB", lambda cell: _scaled(cell, "peak_memory_bytes", 2**30), 2),
    ]
    rows = []
    for label, value, digits in lines:
        mine = value(best)
        cells = [_number(mine, digits)]
        for other in rivals.values():
            theirs = value(other)
            change = MISSING if mine is None or theirs is None else f"{mine - theirs:+.{digits}f}"
            cells += [_number(theirs, digits), change]
        rows.append((label, *cells))
    headers = [header for label, cell in rivals.items() for header in (f"{label}: {cell.name}", "difference")]
    yield Table(
        "best",
        "The best cell, and the cells that it must beat",
        "Means over runs. The best of many is biased upwards; the confirmation, where there is one, is not.",
        ("", best.name, *headers),
        tuple(rows),
    )


def _scaled(cell: CellRuns, key: str, unit: float) -> float | None:
    value = cell.mean_of(attrgetter(key))
    return None if value is None else value / unit


def _robustness(analysis: Analysis) -> Iterator[Table]:
    cells = measured_robustness(analysis)
    if not cells:
        return
    keys = dict.fromkeys((curve.modality, curve.kind) for _, found in cells for curve in found.curves)
    by_cell = [{(curve.modality, curve.kind): curve for curve in found.curves} for _, found in cells]
    rows = [("clean", "", *(_number(found.clean) for _, found in cells))]
    for key in keys:
        curves = [curves.get(key) for curves in by_cell]
        rows.append((*key, *(_number(None if curve is None else curve.remaining) for curve in curves)))
    yield Table(
        "robustness",
        "Area under AP against severity",
        "In 0 to 1, like AP; “absent” is AP without the modality. One run per cell.",
        ("modality", "corruption", *(cell.name for cell, _ in cells)),
        tuple(rows),
        num_names=2,
    )


def _hypotheses(analysis: Analysis) -> Iterator[Table]:
    rows = []
    for result in analysis.hypotheses:
        first: tuple[str, str, str] = (result.hypothesis.name, result.hypothesis.text, result.outcome)
        if not result.claims:
            rows.append((*first, MISSING, MISSING, MISSING, MISSING, MISSING))
        for claim in result.claims:
            difference, interval, p, verdict = _test_result(claim)
            claimed = f"{claim.a} beats {claim.b}: {verdict}"
            rows.append((*first, claimed, difference, interval, p, _seeds_needed(claim)))
            first = ("", "", "")
    if rows:
        yield Table(
            "hypotheses",
            "Hypotheses and their claims",
            "Registered before the first run. A hypothesis is supported if all its claims are, and refuted if the "
            "opposite of one is. p is corrected for all claims of the table. “seeds needed” is the number of runs per "
            f"cell that would find a difference of the size seen with a probability of {POWER:.0%}; “> {MAX_SEEDS}” "
            "means more seeds than that, or more images.",
            ("", "hypothesis", "verdict", "claim", "difference", "95 % interval", "p", "seeds needed"),
            tuple(rows),
            num_names=4,
        )


@dataclass(frozen=True, slots=True)
class HypothesisRow:
    """A hypothesis in one row, above its claims."""

    name: str
    text: str
    outcome: str
    seeds_needed: str
    """The most that a claim needs that could not be decided."""
    claims: Table


def hypothesis_rows(analysis: Analysis) -> list[HypothesisRow]:
    """One row per hypothesis, with a table of its claims, which is empty where it was not tested."""
    words: Mapping[str, str] = {"A is better": "supported", "B is better": "refuted"}
    found = []
    for result in analysis.hypotheses:
        undecided = [claim for claim in result.claims if claim.verdict == "not distinguishable"]
        most = max(undecided, key=lambda claim: claim.comparison.seeds_needed or MAX_SEEDS + 1, default=None)
        rows = []
        for claim in result.claims:
            difference, interval, p, _ = _test_result(claim)
            verdict = words.get(claim.verdict, claim.verdict)
            metric = result.hypothesis.metric
            claimed = f"{claim.a} beats {claim.b}" + (f" by {metric}" if metric else "")
            rows.append((claimed, verdict, difference, interval, p, _seeds_needed(claim)))
        table = Table(
            f"claims_{result.hypothesis.name}",
            f"Claims of {result.hypothesis.name}",
            "",
            ("claim", "verdict", "difference", "95 % interval", "p", "seeds needed"),
            tuple(rows),
            num_names=2,
        )
        seeds = MISSING if most is None else _seeds_needed(most)
        hypothesis = result.hypothesis
        # The noise of the loss gap over images is unknown.
        outcome = f"{result.outcome}, on these images" if hypothesis.measure == "gap" else result.outcome
        found.append(HypothesisRow(hypothesis.name, hypothesis.text, outcome, seeds, table))
    return found


def _seeds_needed(claim: PairComparison) -> str:
    if claim.verdict != "not distinguishable":
        return MISSING
    needed = claim.comparison.seeds_needed
    return f"> {MAX_SEEDS}" if needed is None else str(needed)


def _factors(analysis: Analysis) -> Iterator[Table]:
    changes = [
        (effect.phase, short_name(effect.factor), f"{change.a} minus {change.b}", *_test_result(change))
        for effect in analysis.effects
        for change in effect.changes
        if effect.factor.arms is None
    ]
    crossed = [
        (found.phase, found.pair.a, "interaction", *_test_result(found.pair))
        for found in analysis.interactions
    ]
    if changes or crossed:
        yield Table(
            "effects",
            "Effects of the factors",
            "Differences of the means over all cells of a phase, and for every two factors how much the effect of one "
            "depends on the other (half the difference of the differences).",
            ("phase", "factor", "change", "difference", "95 % interval", "p", "verdict"),
            (*changes, *crossed),
            num_names=3,
        )


def _equivalent_cells(analysis: Analysis) -> Iterator[Table]:
    rows = tuple(
        (f"{pair.a} minus {pair.b}", *_test_result(pair)) for pair in analysis.noise.equivalent_pairs
    )
    if rows:
        yield Table(
            "equivalent_cells",
            "Equivalent cells",
            "These cells compute the same function: their differences are noise.",
            ("cells", "difference", "95 % interval", "p", "verdict"),
            rows,
        )


def _test_result(pair: PairComparison) -> tuple[str, str, str, str]:
    """Difference, interval, corrected p value, verdict."""
    found = pair.comparison
    interval = _interval(found, "+.4f")
    return f"{found.difference:+.4f}", interval, _number(pair.p_corrected, 3), _verdict(pair)


def _verdict(pair: PairComparison | None) -> str:
    words: Mapping[str, str] = {"A is better": "better", "B is better": "worse"}
    return MISSING if pair is None else words.get(pair.verdict, pair.verdict)


def _interval(found: Estimate | Comparison, form: str) -> str:
    return (
        MISSING if found.low is None or found.high is None else f"{found.low:{form}} to {found.high:{form}}"
    )


def _number(value: float | None, digits: int = 4) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _escape_formula(cell: str) -> str:
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell


LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "²": r"\textsuperscript{2}",
    "“": "``",
    "”": "''",
}


def _escape_latex(text: str) -> str:
    return "".join(LATEX_ESCAPES.get(char, char) for char in text)
