"""Which trials are to be run: by what the journal says, without running any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from raydet.recipes import recipe
from raydet.track.base import NullTracker
from raydet.tune.budget import Meter
from raydet.tune.cells import Trial, seeds_of, trials_of
from raydet.tune.early_stopping import EarlyStopping
from raydet.tune.journal import Journal
from raydet.tune.options import StudyOptions
from raydet.tune.phases import cells_by_phase
from raydet.tune.run import StudyRun
from raydet.tune.view import StudyView
from tune_spaces import gaff_phase1

STUDY = gaff_phase1.study(recipe("demo"))
PHASE = gaff_phase1.PHASE


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "gaff") as journal:
        yield journal


def first_trial(journal: Journal) -> Trial:
    return trials_of(STUDY, cells_by_phase(STUDY, journal)[PHASE.name], seeds_of(STUDY, 1))[0]


@pytest.fixture
def trial(journal: Journal) -> Trial:
    """The first one, of which the tests tell; nothing is known of the other seven."""
    return first_trial(journal)


def to_run(journal: Journal, trial: Trial, **options: object) -> bool:
    run = StudyRun(
        study=STUDY,
        options=StudyOptions(storage=journal.path.parent.parent, **options),  # type: ignore[arg-type]
        root=journal.path.parent,
        journal=journal,
        meter=Meter(journal.path.parent, journal),
        tracker=NullTracker(),
        view=StudyView(console=Console(), study="gaff", metric="mAP"),
        stack=ExitStack(),
    )
    missing = run.missing(PHASE)
    assert len(missing) == 7 + (trial in missing)
    return trial in missing


def happened(journal: Journal, trial: Trial, *events: str) -> None:
    for event in events:
        journal.append(event, key=trial.key, name=trial.name, reason="test", epoch=1, score=0.1)


def test_a_trial_has_one_chance_and_its_retries(journal: Journal, trial: Trial) -> None:
    assert to_run(journal, trial)
    happened(journal, trial, "started", "failed")
    assert to_run(journal, trial)
    assert not to_run(journal, trial, retries=0)
    happened(journal, trial, "started", "failed")
    assert not to_run(journal, trial)
    assert to_run(journal, trial, retries=2)


def test_chances_are_counted_over_all_commands_unless_they_are_given_anew(tmp_path: Path) -> None:
    with Journal(tmp_path / "gaff") as first:
        trial = first_trial(first)
        happened(first, trial, "started", "failed", "started", "failed")
    with Journal(tmp_path / "gaff") as second:
        assert not to_run(second, trial)
        assert to_run(second, trial, retry_failed=True)


def test_a_stopped_trial_goes_on_only_where_stopping_is_not_wanted(journal: Journal, trial: Trial) -> None:
    happened(journal, trial, "started", "stopped")
    assert not to_run(journal, trial, early_stopping=EarlyStopping(1))
    assert to_run(journal, trial)


def test_failures_before_a_stop_are_forgotten(journal: Journal, trial: Trial) -> None:
    happened(journal, trial, "failed", "failed", "started", "stopped")
    assert to_run(journal, trial)
    happened(journal, trial, "failed", "failed")
    assert not to_run(journal, trial)
