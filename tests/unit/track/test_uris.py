"""Tracking URIs: paths with characters that mean something in a URI, directories, and databases that keep nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from raydet.errors import TrackingError
from raydet.recipes import recipe
from raydet.track.mlflow import MLflowTracker
from raydet.track.runs import SQLITE, begin_run, existing_tracker, open_tracker
from raydet.track.server import check_reachable
from raydet.track.sqlite import sqlite_path, sqlite_uri

NAMES = ("a b", "50%20 or %", "why?=1&x", "Übung#2", "a?b/mlruns;c@d:e")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_survives_its_uri(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / SQLITE
    assert sqlite_path(sqlite_uri(path)) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b c.db", "/a/b c.db"),
        ("sqlite:////a/b%3Fc.db?timeout=5", "/a/b?c.db"),
        ("sqlite:///file:/a/b.db?uri=true&mode=rwc", "/a/b.db"),
        ("sqlite+pysqlite:////a/ü.db", "/a/ü.db"),
    ],
)
def test_the_path_of_a_uri_is_the_file_that_is_opened(uri: str, path: str) -> None:
    assert sqlite_path(uri) == Path(path)


@pytest.mark.parametrize("uri", ["http://host:5000", "postgresql://me@host/db", "databricks"])
def test_other_uris_have_no_path(uri: str) -> None:
    assert sqlite_path(uri) is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:////a?b/mlflow.db", "written as %3F: sqlite:////a%3Fb/mlflow.db"),
        ("sqlite:////a?b=c/mlflow.db", "written as %3F: sqlite:////a%3Fb=c/mlflow.db"),
        ("sqlite://", "keeps nothing"),
        ("sqlite:///:memory:", "keeps nothing"),
    ],
)
def test_sqlite_uris_that_are_not_a_file(uri: str, message: str) -> None:
    with pytest.raises(TrackingError, match=message):
        sqlite_path(uri)


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:///tmp/mlruns", "file:mlruns", ""])
def test_a_directory_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=r"use sqlite:///PATH") as caught:
        check_reachable(uri)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_everything_is_beside_the_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    storage = tmp_path / "there" / name  # created by the tracker
    tracker = open_tracker(None, directory=storage, experiment="study")
    run_id = begin_run(tracker, recipe("demo"), name="exp", identity=str(storage / "run"))
    assert {path.name for path in storage.iterdir()} == {SQLITE, f"{SQLITE}.lock", "mlartifacts"}
    assert [path.name for path in (storage / "mlartifacts").glob("**/*.json")] == ["config.json"]
    assert {path.name for path in (tmp_path / "there").iterdir()} == {Path(name).parts[0]}
    assert list((tmp_path / "here").iterdir()) == []
    again = existing_tracker(None, directory=storage, experiment="study")
    assert again is not None
    assert again.find_run(str(storage / "run")) == run_id


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["new/deeper", "ä ö", "%3F"])
def test_the_directory_of_a_sqlite_uri_is_made(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    MLflowTracker(f"sqlite:///{folder}/mlflow.db", "study")
    made = tmp_path / ("?" if folder == "%3F" else folder)
    assert (made / SQLITE).exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_database_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot write the tracker's database") as caught:
        MLflowTracker(f"sqlite:///{tmp_path}/file/mlflow.db", "study")
    assert "choose another path" in str(caught.value)


def test_a_deleted_experiment_is_named_with_the_ways_on(store: str) -> None:
    MLflowTracker(store, "thrown away")
    client = MlflowClient(store)
    number = client.get_experiment_by_name("thrown away").experiment_id
    client.delete_experiment(number)
    with pytest.raises(TrackingError) as caught:
        MLflowTracker(store, "thrown away")
    message = str(caught.value)
    assert f'"thrown away" (id {number}) was deleted' in message
    for remedy in (f"mlflow experiments restore -x {number}", "mlflow gc", "another --tracking-uri"):
        assert remedy in message
    assert "\n" not in message
    client.restore_experiment(number)
    MLflowTracker(store, "thrown away")
