"""One sqlite store for all tests, as creating it takes seconds; each test uses its own experiment."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the store."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
