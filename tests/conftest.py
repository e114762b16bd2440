"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(
    1
)  # several threads on busy cores wait for one another, many times as long as they work
hypothesis.settings.register_profile("raydet", deadline=None)  # a busy machine must not decide
hypothesis.settings.load_profile("raydet")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings that may not be published with the project."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the research data are not beside this clone (their licences forbid to ship them)")
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is left in the user's cache of shards."""
    os.environ["RAYDET_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _torch_as_found() -> object:
    """No test sees another one's random state."""
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
