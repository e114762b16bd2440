"""`raydet report`: write the page, figures and tables of a study.

report/
  report.html          one self-contained page
  figures/             every figure as PNG and SVG
  tables/              every table as CSV and LaTeX
  pictures/            drawn detections and attention of the best arm
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import raydet
from raydet.errors import ConfigError, RaydetError
from raydet.report.analysis import Analysis, analyse
from raydet.report.conclusions import conclusions, decisions, limits, summary
from raydet.report.drawings.run import Drawing, drawings_of_run
from raydet.report.figures.anomalies import anomaly_figures
from raydet.report.figures.effects import effect_figures
from raydet.report.figures.robustness import robustness_figures
from raydet.report.figures.scores import AGAINST_CONTROL, score_figures
from raydet.report.figures.style import Figure, figure_style
from raydet.report.figures.training import cost_figures, curve_figures
from raydet.report.page import Image, Page, Section, embed, render
from raydet.report.study import open_study
from raydet.report.tables import Table, hypothesis_rows, tables
from raydet.runs.run_dir import write_atomically
from raydet.runs.usage import Usage
from raydet.stats.comparison import MAX_SEEDS, POWER

DIRECTORY = "report"
PAGE = "report.html"

FIGURES: dict[str, Callable[[Analysis], Iterable[Figure]]] = {
    "scores": score_figures,
    "anomalies": anomaly_figures,
    "effects": effect_figures,
    "training": curve_figures,
    "costs": cost_figures,
    "robustness": robustness_figures,
}
HYPOTHESES = (
    "A hypothesis is supported if all its claims are, and refuted if the opposite of one is; a row unfolds into its "
    "claims. p is corrected for the claims of all hypotheses. “Seeds needed” is the number of runs per cell that would "
    f"find a difference of the size seen with a probability of {POWER:.0%}; “> {MAX_SEEDS}” means more seeds than "
    "that, or more images."
)
NUM_DRAWINGS = 2
"""Number of best images, and of worst images."""


@dataclass(frozen=True, slots=True)
class Report:
    """The files of a written report."""

    page: Path
    files: tuple[Path, ...]
    """All files, including the page."""
    conclusions: tuple[str, ...]
    phase: str
    """The last phase with finished runs."""


def write_report(directory: Path, *, output: Path | None = None, resamples: int = 200) -> Report:
    """Write the report of a study.

    Args:
        directory: `<storage>/<study>`.
        output: directory for the files; default: `report/` in the study's.
        resamples: number of resampled sets of images for the bootstrap.

    Raises:
        StudyError: there is no study, or none of its runs has finished.
        ConfigError: the files cannot be written.
    """
    analysis = analyse(open_study(directory), resamples=resamples)
    with figure_style():
        groups = {
            name: [_Rendered(figure, figure.svg(), figure.png()) for figure in make(analysis)]
            for name, make in FIGURES.items()
        }
    all_tables = tables(analysis)
    gallery = _gallery(analysis)
    page = _page(analysis, all_tables, groups, gallery)
    output = output or directory / DIRECTORY
    figures = [figure for group in groups.values() for figure in group]
    try:
        files = _write(output, render(page), figures, all_tables, gallery)
    except OSError as error:
        raise ConfigError(
            f"cannot write the report to {output}: {error.strerror}; choose another --output"
        ) from error
    phase = [name for name, cells in analysis.results.cells.items() if cells][-1]
    return Report(output / PAGE, files, tuple(conclusions(analysis)), phase)


@dataclass(frozen=True, slots=True)
class _Rendered:
    figure: Figure
    svg: str
    png: bytes

    @property
    def image(self) -> Image:
        return embed(self.figure.title, self.figure.caption, self.svg.encode(), kind="svg+xml")


@dataclass(frozen=True, slots=True)
class _Gallery:
    sentences: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()


def _gallery(analysis: Analysis) -> _Gallery:
    """Images of the best arm's first run; if its checkpoint or data are missing, only a sentence that says so."""
    best = max(analysis.results.arms, key=lambda cell: cell.utility, default=None)
    if best is None:
        return _Gallery()
    try:
        drawings = drawings_of_run(best.run_dirs[0], count=NUM_DRAWINGS)
    except RaydetError as error:
        return _Gallery((f"There are no images of {best.name}: {error}",))
    return _Gallery((f"Images of {best.name}, the best arm (its first run).",), tuple(drawings))


def _page(
    analysis: Analysis,
    all_tables: Sequence[Table],
    groups: Mapping[str, Sequence[_Rendered]],
    gallery: _Gallery,
) -> Page:
    def named(*prefixes: str) -> list[Table]:
        return [table for table in all_tables if table.name.startswith(prefixes)]

    # The figure that sums up: the arms against the best control, or else whatever the scores begin with.
    scores = sorted(groups["scores"], key=lambda rendered: rendered.figure.name != AGAINST_CONTROL)
    first = scores[0].image if scores else None
    images = {
        name: [rendered.image for rendered in group if not scores or rendered is not scores[0]]
        for name, group in groups.items()
    }
    hypotheses = hypothesis_rows(analysis)
    sections = [
        Section("hypotheses", "Hypotheses", [HYPOTHESES] if hypotheses else [], hypotheses=hypotheses),
        Section("conclusions", "Conclusions", conclusions(analysis, has_hypotheses=False)),
        Section("limits", "Limitations", limits(analysis)),
        Section("cells", "Cells", tables=named("best", "cells"), images=images["scores"]),
        Section("decisions", "Selections between phases", sentences=decisions(analysis.results)),
        Section("factors", "Factors", tables=named("effects"), images=images["effects"]),
        Section("noise", "Noise", tables=named("equivalent_cells")),
        Section("training", "Training", images=images["training"]),
        Section("anomalies", "Anomalies", images=images["anomalies"]),
        Section("costs", "Costs", images=images["costs"]),
        Section("robustness", "Robustness", tables=named("robustness"), images=images["robustness"]),
        Section(
            "pictures",
            "Images",
            sentences=gallery.sentences,
            images=[embed(image.title, image.caption, image.png, kind="png") for image in gallery.drawings],
        ),
    ]
    return Page(
        title=f"Study {analysis.results.name}",
        summary=summary(analysis),
        figure=first,
        facts=_facts(analysis),
        sections=[section for section in sections if not section.is_empty],
        footer=f"Written by raydet {raydet.__version__} from the journal of {analysis.results.directory.name}.",
    )


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    results = analysis.results
    base, protocol = results.study.base, results.protocol
    trials = {record.trial.key: record for records in results.records.values() for record in records}
    finished = sum(record.status == "finished" for record in trials.values())
    seconds = sum(record.results.loop_s for record in trials.values() if record.results is not None)
    groups = f" in {analysis.num_groups} groups" if analysis.num_groups else ""
    num_images, usage = analysis.num_images, results.usage
    return [
        ("runs", f"{finished} of {len(trials)} finished"),
        ("metric", protocol.metric),
        ("seeds per cell", str(results.num_seeds)),
        ("data", ", ".join([base.data.source.kind, *map(base.data.shown_name, base.data.simulated)])),
        ("test images", f"{num_images}{groups}" if num_images else "unknown"),
        ("classes", ", ".join(base.data.classes)),
        (
            "schedule",
            f"{base.train.epochs} epoch{'s' * (base.train.epochs != 1)}, batch {base.train.global_batch}",
        ),
        ("training time", f"{seconds / 3600:.2f} h"),
        ("cluster usage", "unknown" if usage == Usage() else f"{usage}, including failed attempts"),
    ]


def _write(
    output: Path, html: str, figures: Sequence[_Rendered], all_tables: Sequence[Table], gallery: _Gallery
) -> tuple[Path, ...]:
    texts = {output / PAGE: html}
    texts |= {output / "figures" / f"{rendered.figure.name}.svg": rendered.svg for rendered in figures}
    for table in all_tables:
        texts[output / "tables" / f"{table.name}.csv"] = table.as_csv()
        texts[output / "tables" / f"{table.name}.tex"] = table.as_latex()
    pngs = {output / "figures" / f"{rendered.figure.name}.png": rendered.png for rendered in figures}
    pngs |= {output / "pictures" / f"{image.name}.png": image.png for image in gallery.drawings}
    for folder in {path.parent for path in (*texts, *pngs)}:
        folder.mkdir(parents=True, exist_ok=True)
    for path, content in pngs.items():
        path.write_bytes(content)
    for path, text in texts.items():
        write_atomically(path, text)
    return (*texts, *pngs)
