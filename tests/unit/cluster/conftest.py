"""The manifests of cluster/, filled as a reader would fill them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from filled import CLUSTER, VALUES  # first: puts cluster/ on the path

from fill import fill  # isort: skip


@pytest.fixture(scope="session")
def documents() -> Callable[[str], list[dict[str, Any]]]:
    """Reads a manifest by its path within cluster/, afresh each time, so that a test may change it."""

    def read(name: str) -> list[dict[str, Any]]:
        text = fill((CLUSTER / name).read_text(), VALUES, source=name)
        return list(yaml.safe_load_all(text))

    return read
