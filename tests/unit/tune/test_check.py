"""Errors of the preflight check are raised in the parent process unchanged."""

from __future__ import annotations

import threading
import time
from multiprocessing import active_children

import pytest

from raydet.config import apply_overrides
from raydet.errors import ConfigError, OutOfMemoryError
from raydet.recipes import recipe
from raydet.tune.check import check_in_subprocess


def test_an_error_is_raised_in_the_parent() -> None:
    experiment = apply_overrides(recipe("demo"), {"train.global_batch": 100_000})
    with pytest.raises(ConfigError, match="100000"):
        check_in_subprocess(experiment, workers=1)


def test_a_killed_process_is_reported() -> None:
    def kill() -> None:
        while not (processes := active_children()):
            time.sleep(0.05)
        processes[0].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(OutOfMemoryError, match="was killed; is there enough memory"):
        check_in_subprocess(recipe("demo"), workers=1)
    assert active_children() == []
