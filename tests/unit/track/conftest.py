"""One sqlite store for all tests, as creating it takes seconds; each test uses its own experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from raydet.checkpoint.retention import intact_checkpoints
from tests.results import write_checkpoint


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the store."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[[Mapping[int, float | None]], list[Path]]:
    """Writes small intact checkpoints of a run, by epoch and score; returns all of the run, newest first."""

    def write(scores: Mapping[int, float | None]) -> list[Path]:
        for epoch, score in scores.items():
            write_checkpoint(tmp_path / "run", epoch, score)
        return list(intact_checkpoints(tmp_path / "run"))

    return write
