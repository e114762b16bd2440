"""The report as files: complete, self-contained, and harmless whatever names are in it."""

from __future__ import annotations

import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from raydet.cli import main
from raydet.cli.spaces import load_space
from raydet.config import apply_overrides
from raydet.recipes import recipe
from raydet.report.tables import Table
from raydet.report.write import Report, write_report
from raydet.track.mlflow import MLflowTracker
from raydet.track.runs import SQLITE
from raydet.tune.cells import Trial
from raydet.tune.journal import read_journal
from tests.study.simulated import simulate

HOSTILE = "<script>alert(1)</script>"
BASE = apply_overrides(recipe("demo"), {"data.classes": [HOSTILE, "b & c", "=1+1"]})
STUDY = load_space("fusion_methods", BASE, {}, arms=["cmx", "gaff", "gaff_shared"])


def quality(trial: Trial) -> float:
    generator = np.random.default_rng(int(trial.key, 16) % 2**32)
    return (0.3 if trial.cell.is_control else 0.6) + generator.normal(0, 0.005)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(STUDY, tmp_path_factory.mktemp("runs"), quality)


@pytest.fixture(scope="module")
def report(study: Path) -> Report:
    return write_report(study, resamples=100)


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_self_contained_and_has_no_scripts(report: Report) -> None:
    page = Elements(report.page.read_text())
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    policies = [a.get("content") for _, a in page.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert HOSTILE in page.text
    num_runs = len(read_journal(report.page.parents[1]).results())
    assert f"{num_runs / 2:.3f} GPU-hours, including failed attempts" in page.text
    assert "http" not in re.sub(r"data:[^\"]*", "", report.page.read_text()).replace("http-equiv", "")


def test_every_section_is_there_and_every_figure_is_a_file(study: Path, report: Report) -> None:
    page = Elements(report.page.read_text())
    anchors = {attributes["id"] for tag, attributes in page.found if tag == "section" and "id" in attributes}
    firsts = {"summary", "hypotheses", "conclusions", "limits"}
    assert anchors == firsts | {"cells", "noise", "training", "pictures", "costs"}
    figures = {path.stem for path in (study / "report" / "figures").glob("*.svg")}
    assert figures == {path.stem for path in (study / "report" / "figures").glob("*.png")}
    assert {"scores_methods", "differences_against_control", "pairs", "curves_loss", "gap"} <= figures
    assert sum(tag == "img" for tag, _ in page.found) == len(figures)
    assert "There are no images of" in page.text  # these runs have no checkpoints
    assert set(report.files) == {path for path in (study / "report").rglob("*") if path.is_file()}


def test_the_first_screen_is_a_figure_and_three_sentences(report: Report) -> None:
    first, _, rest = report.page.read_text().partition("</section>")
    page = Elements(first)
    assert [attributes["alt"] for tag, attributes in page.found if tag == "img"] == [
        "mAP of every arm minus that of the best control thermal_twice"
    ]
    sentences = re.findall(r"<li>(.*?)</li>", first)
    assert sentences[0] == (
        "3 arms and 6 controls were compared by mAP, with 3 seeds each, on 60 test images in 20 groups, after 5 epochs."
    )
    assert sentences[1].startswith(
        "Found: gaff_shared, gaff, cmx beat the best control thermal_twice (mAP 0.2"
    )
    assert sentences[1].endswith("; hypotheses F1, F2 are supported.")
    assert sentences[2] == "Undecided: whether hypothesis F5 holds (not distinguishable)."
    assert len(sentences) == 3
    assert "F1" in rest


def test_claims_are_folded_into_a_row_per_hypothesis(report: Report) -> None:
    html = report.page.read_text()
    folds = re.findall(r"<details>(.*?)</details>", html, flags=re.DOTALL)
    assert [re.findall(r'<span class="name">(.*?)</span>', fold) for fold in folds] == [
        ["F1"],
        ["F2"],
        ["F5"],
    ]
    assert [re.findall(r'class="seeds">(.*?)</span>', fold)[0] for fold in folds] == ["–", "–", "&gt; 100"]
    text = Elements(folds[0]).text
    for claim in ("cmx beats rgb", "cmx beats thermal", "cmx beats event"):
        assert text.count(claim) == 1
    assert "<details open" not in html


def test_tables_match_the_journal(study: Path, report: Report) -> None:
    with (study / "report" / "tables" / "cells_methods.csv").open(newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"cmx", "gaff", "gaff_shared"}
    assert rows["cmx"]["minus default"] == "–"
    assert rows["cmx"]["images/s"] == "100.0"
    assert rows["cmx"]["GPU-hours"] == "1.500"  # three runs
    assert {row["against best control"] for row in rows.values()} == {"better"}
    latex = (study / "report" / "tables" / "cells_methods.tex").read_text()
    assert r"gaff\_shared & " in latex
    assert latex.count(r"\\") == 4  # the head and three rows


@pytest.mark.slow
def test_the_command_writes_the_same_bytes_and_uploads_them_to_the_tracker(
    study: Path, report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / study.name
    shutil.copytree(study, copy, ignore=shutil.ignore_patterns("report"))
    uri = f"sqlite:///{tmp_path / SQLITE}"
    MLflowTracker(uri, study.name).open_run("methods", identity="methods")
    with pytest.raises(SystemExit) as left:
        main(["report", str(copy), "--resamples", "100"])
    assert left.value.code == 0
    assert str(copy / "report" / "report.html") in capsys.readouterr().out
    for path in report.files:
        if path != report.page:  # it tells where images were looked for
            assert (copy / path.relative_to(study)).read_bytes() == path.read_bytes(), path.name
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(study.name).experiment_id])
    assert run.info.status == "RUNNING"  # a report says nothing about whether the study goes on
    assert {entry.path for entry in client.list_artifacts(run.info.run_id, "report")} == {
        "report/report.html",
        "report/figures",
        "report/tables",
    }


@pytest.mark.parametrize(
    ("argument", "message"), [("nowhere", "holds no study"), ("study/methods", "holds no study")]
)
def test_a_directory_without_a_study_is_an_error(
    argument: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["report", str(tmp_path / argument)])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_simulated_events_are_marked(tmp_path: Path) -> None:
    base = apply_overrides(recipe("demo"), {"data.simulate_events": {"replaces_own": True}})
    study = load_space("fusion_methods", base, {}, arms=["cmx"])
    text = Elements(write_report(simulate(study, tmp_path, quality), resamples=20).page.read_text()).text
    assert "synthetic, event (simulated)" in text
    assert "The event modality is simulated from rgb, no camera has recorded it." in text


def test_recorded_events_are_not_marked_as_simulated(report: Report) -> None:
    assert "simulated from rgb" not in report.page.read_text()


def test_formulas_are_escaped_for_spreadsheets() -> None:
    table = Table("t", "T", "", ("=cmd()", "a"), (("@SUM(1)", "-0.5"), (" =1+1", "+1")))
    rows = list(csv.reader(table.as_csv().splitlines()))
    assert rows == [["'=cmd()", "a"], ["'@SUM(1)", "-0.5"], ["' =1+1", "+1"]]
