"""The report's tables, and how they become HTML rows, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from raydet.metrics.sizes import SizeBins
from raydet.report.analysis import Analysis
from raydet.report.figures.robustness import measured
from raydet.report.findings import Estimate, Versus, short, value_label
from raydet.report.study import CellRuns
from raydet.stats.comparison import MOST_SEEDS
from raydet.tune.study import CONFIRMATION

METRICS = ("mAP_50", "mAP_75", "mAP_small", "mAP_medium", "mAP_large")
HEADS = {
    "mAP_50": "AP50",
    "mAP_75": "AP75",
    "mAP_small": "small",
    "mAP_medium": "medium",
    "mAP_large": "large",
}
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows; the first `num_names` columns are words, the others numbers."""

    name: str
    """Of its files."""
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int = 1

    def as_csv(self) -> str:
        """For spreadsheets; text that one would take for a formula is quoted."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(map(_harmless, self.columns))
        writer.writerows(
            [_harmless(cell) if i < self.num_names else cell for i, cell in enumerate(row)]
            for row in self.rows
        )
        return text.getvalue()

    def as_latex(self) -> str:
        """For papers; wants the package booktabs."""
        layout = "l" * self.num_names + "r" * (len(self.columns) - self.num_names)
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in (self.columns, *self.rows)]
        body = "\n".join([lines[0], r"\midrule", *lines[1:]])
        caption = _latex(f"{self.title}. {self.caption}")
        return (
            f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{{layout}}}\n\\toprule\n"
            f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )


def tables(analysis: Analysis) -> list[Table]:
    """All tables, in the order of the report."""
    return [
        *_phase_tables(analysis),
        *_best(analysis),
        *_hypotheses(analysis),
        *_factors(analysis),
        *_robustness(analysis),
        *_twins(analysis),
    ]


def _phase_tables(analysis: Analysis) -> Iterator[Table]:
    for phase, estimates in analysis.estimates.items():
        if estimates:
            yield _phase_table(analysis, phase, estimates)


def _phase_table(analysis: Analysis, phase: str, estimates: Sequence[Estimate]) -> Table:
    study = analysis.results.study
    order = sorted(estimates, key=lambda estimate: -estimate.cell.mean)
    factors = [
        factor
        for factor in study.factors
        if factor.arms is None
        and len({estimate.cell.cell.values.get(factor.path) for estimate in estimates}) > 1
    ]
    against = analysis.against_control
    if phase == CONFIRMATION:  # the runs that chose the winner do not count here
        against = () if analysis.confirmation is None else (analysis.confirmation,)
    verdicts = {versus.a: versus for versus in against}
    default = _default_cell(analysis, phase)
    unit = analysis.results.usage.unit
    rows = []
    for rank, estimate in enumerate(order, start=1):
        cell = estimate.cell
        values = (cell.cell.values.get(factor.path) for factor in factors)
        rows.append(
            (
                cell.name,
                *(MISSING if value is None else value_label(value) for value in values),
                str(rank),
                str(len(cell.runs)),
                number(cell.mean),
                _range(estimate),
                MISSING if default is None or cell is default else f"{cell.mean - default.mean:+.4f}",
                *(number(cell.final(metric)) for metric in METRICS),
                *costs(cell, analysis.baseline),
                number(None if cell.usage is None else cell.usage.by_unit[unit], 3),
                _in_short(verdicts.get(cell.name)),
            )
        )
    columns = (
        "cell",
        *(short(factor) for factor in factors),
        "rank",
        "runs",
        study.metric,
        "95 % interval",
        "less default",
        *(HEADS[metric] for metric in METRICS),
        "parameters, M",
        "added, M",
        "GFLOP",
        "minutes",
        "images/s",
        unit,
        "against best control",
    )
    return Table(
        f"cells_{phase}",
        f"Cells of {phase}",
        "A cell is one setting, trained once per seed; numbers are means over its runs. “less default” is the score "
        "less that of the cell of all defaults, “added” the parameters on top of the baseline's. Objects are "
        f"{SizeBins.of(study.base.evaluate)}. Minutes and images/s are "
        "of training, with all its workers, whatever else the machine had to do. "
        f"{unit} are summed over the cell's runs, attempts that came to nothing included. A dash stands for what there "
        "is not.",
        columns,
        tuple(rows),
        num_names=1 + len(factors),
    )


def _default_cell(analysis: Analysis, phase: str) -> CellRuns | None:
    """The cell of all defaults, if the phase's table has it."""
    defaults = {factor.path: factor.default for factor in analysis.results.study.factors}
    cells = analysis.results.cells[phase]
    return next((cell for cell in cells if not cell.cell.is_control and cell.cell.values == defaults), None)


def costs(cell: CellRuns, baseline: CellRuns | None) -> tuple[str, str, str, str, str]:
    """Parameters, what of them comes on top of the baseline's, operations, time, speed of training."""
    mine = cell.mean_of(lambda results: results.get("parameters"))
    theirs = baseline.mean_of(lambda results: results.get("parameters")) if baseline else None
    added = None if mine is None or theirs is None else (mine - theirs) / 1e6
    minutes = cell.mean_of(lambda results: results.get("loop_s"))
    return (
        number(mine and mine / 1e6, 3),
        MISSING if added is None else f"{added:+.3f}",
        number(cell.mean_of(lambda results: results.get("gflops")), 2),
        number(minutes and minutes / 60, 1),
        number(cell.mean_of(training_speed), 1),
    )


def training_speed(results: Mapping[str, Any]) -> float | None:
    """Images per second while a run trained, evaluation left out: the median of its epochs, which a busy machine
    moves less than the mean.
    """
    speeds = [row["images_per_s"] for row in results.get("history", []) if row.get("images_per_s")]
    return median(speeds) if speeds else None


def _best(analysis: Analysis) -> Iterator[Table]:
    """The best arm beside what it must beat."""
    if not analysis.results.arms:
        return
    best = max(analysis.results.arms, key=lambda cell: cell.mean)
    sides = {"best control": analysis.best_control, "baseline": analysis.baseline}
    others = {label: cell for label, cell in sides.items() if cell is not None and cell.name != best.name}
    if not others:
        return
    metric = analysis.results.study.metric
    lines: list[tuple[str, Callable[[CellRuns], float | None], int]] = [
        (metric, lambda cell: cell.mean, 4),
        *((HEADS[name], _final(name), 4) for name in METRICS),
        ("parameters, M", lambda cell: _scaled(cell, "parameters", 1e6), 3),
        ("GFLOP", lambda cell: _scaled(cell, "gflops", 1), 2),
        ("minutes", lambda cell: _scaled(cell, "loop_s", 60), 1),
        ("images/s in training", lambda cell: cell.mean_of(training_speed), 1),
        ("peak memory, GiB", lambda cell: _scaled(cell, "peak_memory_bytes", 2**30), 2),
    ]
    rows = []
    for label, value, digits in lines:
        mine = value(best)
        cells = [number(mine, digits)]
        for other in others.values():
            theirs = value(other)
            change = None if mine is None or theirs is None else mine - theirs
            cells += [number(theirs, digits), MISSING if change is None else f"{change:+.{digits}f}"]
        rows.append((label, *cells))
    heads = [head for label, cell in others.items() for head in (f"{label}: {cell.name}", "difference")]
    yield Table(
        "best",
        "The best cell, and what it must beat",
        "Means over runs. The best of many is too good on average; the confirmation, where there is one, is not.",
        ("", best.name, *heads),
        tuple(rows),
    )


def _final(metric: str) -> Callable[[CellRuns], float | None]:
    return lambda cell: cell.final(metric)


def _scaled(cell: CellRuns, key: str, unit: float) -> float | None:
    value = cell.mean_of(lambda results: results.get(key))
    return None if value is None else value / unit


def _robustness(analysis: Analysis) -> Iterator[Table]:
    cells = measured(analysis)
    if not cells:
        return
    keys = dict.fromkeys((curve.modality, curve.kind) for _, found in cells for curve in found.curves)
    by_cell = [{(curve.modality, curve.kind): curve for curve in found.curves} for _, found in cells]
    rows = [("as it is", "", *(number(found.clean) for _, found in cells))]
    for key in keys:
        curves = [curves.get(key) for curves in by_cell]
        left = [curve and (curve.scores[-1] if curve.area is None else curve.area) for curve in curves]
        rows.append((*key, *(number(value) for value in left)))
    yield Table(
        "robustness",
        "Area under AP against severity",
        '0 to 1, as AP; "absent": AP without the modality. One run per cell.',
        ("modality", "corruption", *(cell.name for cell, _ in cells)),
        tuple(rows),
        num_names=2,
    )


def _hypotheses(analysis: Analysis) -> Iterator[Table]:
    rows = []
    for tested in analysis.hypotheses:
        head: tuple[str, str, str] = (tested.hypothesis.name, tested.hypothesis.text, tested.answer)
        if not tested.claims:
            rows.append((*head, MISSING, MISSING, MISSING, MISSING, MISSING))
        for claim in tested.claims:
            difference, interval, p, verdict = _outcome(claim)
            claimed = f"{claim.a} beats {claim.b}: {verdict}"
            rows.append((*head, claimed, difference, interval, p, _seeds(claim)))
            head = ("", "", "")
    if rows:
        yield Table(
            "hypotheses",
            "Hypotheses and their claims",
            "Written down before the first run. A hypothesis is supported where all its claims are, and refuted where "
            "the opposite of one is. p is corrected for all claims of the table.",
            ("", "hypothesis", "verdict", "claim", "difference", "95 % interval", "p", "seeds needed"),
            tuple(rows),
            num_names=4,
        )


def _seeds(claim: Versus) -> str:
    if claim.verdict != "not distinguishable":
        return MISSING
    needed = claim.comparison.seeds_needed
    return f"> {MOST_SEEDS}" if needed is None else str(needed)


def _factors(analysis: Analysis) -> Iterator[Table]:
    changes = [
        (effect.phase, short(effect.factor), f"{change.a} less {change.b}", *_outcome(change))
        for effect in analysis.effects
        for change in effect.changes
        if effect.factor.arms is None
    ]
    crossed = [
        (found.phase, found.versus.a, "interaction", *_outcome(found.versus))
        for found in analysis.interactions
    ]
    if changes or crossed:
        yield Table(
            "effects",
            "What each factor does",
            "Differences of the means over all cells of a phase, and of every two factors how far one's effect depends "
            "on the other's (half the difference of the differences).",
            ("phase", "factor", "change", "difference", "95 % interval", "p", "verdict"),
            (*changes, *crossed),
            num_names=3,
        )


def _twins(analysis: Analysis) -> Iterator[Table]:
    rows = tuple((f"{twin.a} less {twin.b}", *_outcome(twin)) for twin in analysis.noise.twins)
    if rows:
        yield Table(
            "twins",
            "Cells that are the same function",
            "What differs here is noise.",
            ("cells", "difference", "95 % interval", "p", "verdict"),
            rows,
        )


def _outcome(versus: Versus) -> tuple[str, str, str, str]:
    found = versus.comparison
    interval = (
        MISSING if found.low is None or found.high is None else f"{found.low:+.4f} to {found.high:+.4f}"
    )
    return f"{found.difference:+.4f}", interval, number(versus.p_corrected, 3), _in_short(versus)


def _in_short(versus: Versus | None) -> str:
    words: Mapping[str, str] = {"A is better": "better", "B is better": "worse"}
    return MISSING if versus is None else words.get(versus.verdict, versus.verdict)


def _range(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return MISSING
    return f"{estimate.low:.4f} to {estimate.high:.4f}"


def number(value: Any, digits: int = 4) -> str:
    """A number, or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def _harmless(cell: str) -> str:
    """What a spreadsheet would compute, behind leading white space too, becomes text."""
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell


LATEX = {
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


def _latex(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in text)
