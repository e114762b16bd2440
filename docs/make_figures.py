"""Make docs/report.png and docs/live_view.svg of the study of `make demo`: python docs/make_figures.py STUDY [MOMENT]

STUDY is the study's directory, `runs/demo/gaff_demo`. MOMENT is a copy of its journal, and of the progress.json of its
running trials, while it ran; without one the live view is that of STUDY as it is now.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
import textwrap
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

from matplotlib.figure import Figure
from PIL import Image
from rich.console import CONSOLE_SVG_FORMAT, Console

from raydet.report.analysis import analyse
from raydet.report.conclusions import summary
from raydet.report.study import open_study
from raydet.tune.budget import UsageMeter
from raydet.tune.journal import read_journal
from raydet.tune.phases import all_trials, recorded_study
from raydet.tune.preregistration import most_seeds
from raydet.tune.trial_status import records_of
from raydet.tune.view import StudyView

DOCS = Path(__file__).parent
WIDTH_PX = 920
NUM_LINES = 5
"""Lines about ended trials above the live view."""


def make_report(study: Path) -> None:
    """The report's first screen, its sentences and its figure, and detections of the best trial."""
    report = study / "report"
    figure = Image.open(report / "figures" / "differences_against_control.png").convert("RGB")
    detections = Image.open(next(report.rglob("best-1.png"))).convert("RGB")
    parts = [_sentences(study), _scaled(figure, WIDTH_PX), _scaled(detections, WIDTH_PX)]
    _stacked(parts, gap=15).save(DOCS / "report.png", optimize=True)


def _sentences(study: Path) -> Image.Image:
    lines = []
    for sentence in summary(analyse(open_study(study))):
        lines += textwrap.wrap(sentence, 125)
    canvas = Figure(figsize=(WIDTH_PX / 100, 0.3 + 0.19 * len(lines)), dpi=100)
    for number, line in enumerate(lines, start=1):
        canvas.text(0.01, 1 - number * 0.19 / canvas.get_figheight(), line, fontsize=9, va="top")
    png = io.BytesIO()
    canvas.savefig(png)
    return Image.open(png).convert("RGB")


def _scaled(image: Image.Image, width: int) -> Image.Image:
    return image.resize((width, image.height * width // image.width), Image.Resampling.LANCZOS)


def _stacked(images: list[Image.Image], *, gap: int) -> Image.Image:
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    column, top = Image.new("RGB", (max(image.width for image in images), height), "white"), 0
    for image in images:
        column.paste(image, (0, top))
        top += image.height + gap
    return column


def make_live_view(moment: Path) -> None:
    """Replay a study's journal on a terminal, up to its last event and the progress of the running trials."""
    journal = read_journal(moment)
    study = recorded_study(journal)
    assert study is not None
    by_key = {trial.key: trial for trial in all_trials(study, journal, most_seeds(journal))}
    console = Console(record=False, width=136, file=io.StringIO(), force_terminal=True)
    view = StudyView(
        console,
        study.name,
        study.base.task,
        study.decider,
        meter=UsageMeter(moment, journal),
        total=len(by_key),
    )
    events = [event for event in journal.events if event.kind in ("started", "finished")]
    recorded = [event for event in events if event.kind == "finished"][-NUM_LINES:]
    progress = [moment / event["directory"] for event in events if event.kind == "started"]
    with tempfile.TemporaryDirectory() as directory, patch("time.monotonic") as clock:
        for event in events:
            console.record = event in recorded
            clock.return_value = datetime.fromisoformat(event.time).timestamp()
            trial = by_key[event.key]
            if event.kind == "started":  # in an empty directory: its progress is that of the end
                view.started(trial, Path(directory) / trial.name)
            else:
                view.ended(records_of([trial], journal)[0], is_final=True)
        for run_dir in progress:
            if (run_dir / "progress.json").exists():
                clock.return_value = max(clock.return_value, (run_dir / "progress.json").stat().st_mtime)
                shutil.copytree(run_dir, Path(directory) / run_dir.name)
        console.record = True
        console.print(view)
    svg = console.export_svg(
        title=f"python -m raydet.tune --space {study.name}",
        code_format=re.sub(
            r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL
        ),  # loads nothing
        unique_id="live-view",
    )
    (DOCS / "live_view.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


if __name__ == "__main__":
    make_report(Path(sys.argv[1]))
    make_live_view(Path(sys.argv[-1]))
