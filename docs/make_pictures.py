"""Make docs/report.png and docs/live_view.svg of a study: `python docs/make_pictures.py STUDY [MOMENT]`.

STUDY is the directory of a study with a report. MOMENT is one like it while trials were running (a copy of its journal
and of their progress.json); by default STUDY itself, if it is running.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

from PIL import Image
from rich.console import CONSOLE_SVG_FORMAT, Console

from raydet.tune.budget import UsageMeter
from raydet.tune.journal import read_journal
from raydet.tune.phases import all_trials, recorded_study
from raydet.tune.preregistration import most_seeds
from raydet.tune.trial_status import records_of
from raydet.tune.view import StudyView

DOCS = Path(__file__).parent
WIDTH_PX = 1000
NUM_LINES = 5
"""Lines about ended trials above the live view."""


def make_report(study: Path) -> None:
    """Two of the report's own pictures: the score of every arm, and what the best one detects."""
    report = study / "report"
    drawn = next(path for path in sorted(report.rglob("best-1.png")))
    names = ("scores_methods.png", "differences_against_control.png")
    images = [Image.open(path).convert("RGB") for path in (*(report / "figures" / n for n in names), drawn)]
    images = [image.resize((WIDTH_PX, image.height * WIDTH_PX // image.width)) for image in images]
    picture = Image.new("RGB", (WIDTH_PX, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        picture.paste(image, (0, top))
        top += image.height
    picture.quantize(128).save(DOCS / "report.png", optimize=True)


def make_live_view(moment: Path) -> None:
    """Replay a study's journal on a terminal, up to its last event and the progress of the running trials."""
    journal = read_journal(moment)
    study = recorded_study(journal)
    assert study is not None
    by_key = {trial.key: trial for trial in all_trials(study, journal, most_seeds(journal))}
    console = Console(record=False, width=136, file=io.StringIO(), force_terminal=True)
    view = StudyView(
        console, study.name, study.base.task, study.decider, meter=UsageMeter(moment, journal), total=len(by_key)
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
        code_format=re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL),  # loads nothing
        unique_id="live-view",
    )
    (DOCS / "live_view.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


if __name__ == "__main__":
    make_report(Path(sys.argv[1]))
    make_live_view(Path(sys.argv[-1]))
