"""The journal: durable events, torn lines, journals of older versions, one driver at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raydet.config.moved import as_first_written
from raydet.errors import StudyError
from raydet.recipes import recipe
from raydet.runs.results import RunResults
from raydet.tune.journal import Journal, read_journal
from raydet.tune.phases import confirmed_codes, recorded_study, remember_study
from tests.results import results_with
from tune_spaces import gaff_phase1


def test_events_come_back_in_order(tmp_path: Path) -> None:
    with Journal(tmp_path / "study") as journal:
        journal.append("started", key="a")
        journal.append("finished", key="a", results=results_with({"mAP": 0.5}))
    with Journal(tmp_path / "study") as journal:
        assert [event.kind for event in journal.events] == ["started", "finished"]
        assert journal.results() == {"a": results_with({"mAP": 0.5})}


def test_a_torn_line_is_dropped_and_the_next_one_is_complete(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append("started", key="a")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"event": "finished", "key": "a", "resu')
    with Journal(tmp_path) as journal:
        assert [event.kind for event in journal.events] == ["started"]
        journal.append("started", key="b")
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "b"]


def test_tracked_epochs_are_dropped_from_memory_but_not_from_the_file(tmp_path: Path) -> None:
    results = results_with({"mAP": 0.5})
    dropped = replace(results, history=())
    with Journal(tmp_path) as journal:
        for key in ("a", "b"):
            journal.append("finished", key=key, results=results)
        journal.append("tracked", key="a")
        assert journal.results() == {"a": dropped, "b": results}
    with Journal(tmp_path) as journal:
        assert journal.results() == {"a": dropped, "b": results}
    assert read_journal(tmp_path).results() == {"a": results, "b": results}


def test_events_of_older_journals_have_their_current_names(tmp_path: Path) -> None:
    study = gaff_phase1.study(recipe("demo"))
    with Journal(tmp_path) as journal:
        remember_study(study, journal)
    path = tmp_path / "journal.jsonl"
    current = path.read_text()
    first, *rest = current.replace('"equivalent_values"', '"twins"').splitlines(keepends=True)
    event = json.loads(first)
    event["settings"] |= {"base": as_first_written(event["settings"]["base"]), "metric": "mAP"}
    older = json.dumps(event) + "\n" + "".join(rest)
    assert '"evaluate"' in older
    assert '"twins"' in older
    older += '{"event": "confirming", "codes": ["a", "b"]}\n{"event": "overspent", "budget": "1 GPU-hours"}\n'
    path.write_text(older)
    events = read_journal(tmp_path)
    assert recorded_study(events) == study
    assert confirmed_codes(events) == ["a", "b"]
    assert [entry["budget"] for entry in events.of("budget_exhausted")] == ["1 GPU-hours"]
    with Journal(tmp_path) as journal:
        remember_study(study, journal)  # the same settings
    assert path.read_text() == older


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from raydet.tune.journal import Journal; Journal(Path({str(tmp_path)!r}))"
    )
    with Journal(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is running this study" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_broken_line_is_reported_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"event": "study"}\nnot json\n')
    with pytest.raises(StudyError, match=r"journal\.jsonl:2: not a journal line"):
        Journal(tmp_path)


def test_a_directory_that_cannot_be_created_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write the study directory"):
        Journal(tmp_path / "file" / "study")


def test_results_come_back_as_they_were() -> None:
    found = results_with(
        {"val_loss": 0.5, "mAP": None, "system/cpu": 3.0, "eval_s": 0.25}, restarts=2, data={"sha256": "0"}
    )
    assert found.final["mAP"] is None
    assert found.final["val_loss"] == 0.5
    assert (found.final.loss, found.final.eval_s) == (1.0, 0.25)
    assert RunResults.parse(json.loads(json.dumps(found.as_json()))) == found


def test_results_of_older_runs_are_read() -> None:
    tree = results_with({"mAP": 0.5}).as_json() | {"size_bins": {"unit": "px", "edges": [32.0, 96.0]}}
    del tree["task"]
    found = RunResults.parse(tree)
    assert found.task == {"size_bins": {"unit": "px", "edges": [32.0, 96.0]}}
    assert found.final["mAP"] == 0.5
