"""Which trials have to run by the journal, without running any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from raydet.recipes import recipe
from raydet.track.base import NullTracker
from raydet.tune.budget import UsageMeter
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
    """The first of eight trials; the journal has no events of the others."""
    return first_trial(journal)


def has_to_run(journal: Journal, trial: Trial, **options: object) -> bool:
    run = StudyRun(
        study=STUDY,
        options=StudyOptions(storage=journal.path.parent.parent, **options),  # type: ignore[arg-type]
        root=journal.path.parent,
        journal=journal,
        meter=UsageMeter(journal.path.parent, journal),
        tracker=NullTracker(),
        view=StudyView(Console(), "gaff", STUDY.base.task, STUDY.decider),
        stack=ExitStack(),
    )
    missing = run.missing(PHASE)
    assert len(missing) == 7 + (trial in missing)
    return trial in missing


def append(journal: Journal, trial: Trial, *events: str) -> None:
    for event in events:
        journal.append(event, key=trial.key, name=trial.name, reason="test", epoch=1, score=0.1, bar=0.2)


def test_a_trial_has_one_attempt_and_its_retries(journal: Journal, trial: Trial) -> None:
    assert has_to_run(journal, trial)
    append(journal, trial, "started", "failed")
    assert has_to_run(journal, trial)
    assert not has_to_run(journal, trial, retries=0)
    append(journal, trial, "started", "failed")
    assert not has_to_run(journal, trial)
    assert has_to_run(journal, trial, retries=2)


def test_failures_count_over_all_commands_unless_retried_on_request(tmp_path: Path) -> None:
    with Journal(tmp_path / "gaff") as first:
        trial = first_trial(first)
        append(first, trial, "started", "failed", "started", "failed")
    with Journal(tmp_path / "gaff") as second:
        assert not has_to_run(second, trial)
        assert has_to_run(second, trial, retry_failed=True)


def test_a_stopped_trial_resumes_only_without_early_stopping(journal: Journal, trial: Trial) -> None:
    append(journal, trial, "started", "stopped")
    assert not has_to_run(journal, trial, early_stopping=EarlyStopping(1))
    assert has_to_run(journal, trial)


def test_failures_before_a_stop_do_not_count(journal: Journal, trial: Trial) -> None:
    append(journal, trial, "failed", "failed", "started", "stopped")
    assert has_to_run(journal, trial)
    append(journal, trial, "failed", "failed")
    assert not has_to_run(journal, trial)
