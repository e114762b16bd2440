"""One sqlite store for all tests: it takes seconds to make. They use experiments of different names."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its URI."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
