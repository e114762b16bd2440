"""Fixtures for all tests."""

from __future__ import annotations

import os
import time
from pathlib import Path

import hypothesis
import pytest
import torch

from raydet.cpu import cpu_name, has_bf16
from tests.parts import parse_part, part_of

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
# Several threads on busy cores wait for one another, many times as long as they work.
torch.set_num_threads(1)
hypothesis.settings.register_profile("raydet", deadline=None)  # a busy machine must not decide
hypothesis.settings.load_profile("raydet")

STARTED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="K/N", help="run the Kth of N parts of the tests, see tests/parts.py")
    parser.addoption(
        "--minutes", type=float, metavar="M", help="skip tests that have not begun after M minutes"
    )
    parser.addoption(
        "--update-golden", action="store_true", help="write down the numbers of tests/golden anew"
    )


@pytest.hookimpl(trylast=True)  # after -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    text = config.getoption("--part")
    if text is None:
        return
    number, count = parse_part(text)
    chosen = part_of({file_of(item) for item in items}, number, count)
    config.hook.pytest_deselected(items=[item for item in items if file_of(item) not in chosen])
    items[:] = [item for item in items if file_of(item) in chosen]


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[STARTED] = time.monotonic()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if needs_bf16(item) and not has_bf16():
        pytest.skip(f"{cpu_name()} has no bf16 instructions: a step takes minutes")
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() > item.config.stash[STARTED] + 60 * minutes:
        pytest.skip(f"not run: --minutes {minutes:g} are over")


def needs_bf16(item: pytest.Item) -> bool:
    """Its marker says so, or one of its parameters is bf16."""
    if item.get_closest_marker("gpu") is not None:
        return False
    callspec = getattr(item, "callspec", None)
    is_parameter = callspec is not None and any(
        isinstance(value, str | torch.dtype) and value in ("bf16", torch.bfloat16)
        for value in callspec.params.values()
    )
    return is_parameter or item.get_closest_marker("bf16") is not None


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


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
