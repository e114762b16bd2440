"""What is wrong with a run comes out of the process that looked as it was raised there."""

from __future__ import annotations

import threading
import time
from multiprocessing import active_children

import pytest

from raydet.config import apply_overrides
from raydet.errors import ConfigError, OutOfMemoryError
from raydet.recipes import recipe
from raydet.tune.check import check_apart


def test_an_error_comes_back() -> None:
    experiment = apply_overrides(recipe("demo"), {"train.global_batch": 100_000})
    with pytest.raises(ConfigError, match="100000"):
        check_apart(experiment, workers=1)


def test_a_killed_process_is_told() -> None:
    def kill() -> None:
        while not (processes := active_children()):
            time.sleep(0.05)
        processes[0].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(OutOfMemoryError, match="was killed; is there enough memory"):
        check_apart(recipe("demo"), workers=1)
    assert active_children() == []
