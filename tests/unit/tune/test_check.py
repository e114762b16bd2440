"""Errors of the preflight check are raised in the parent process unchanged."""

from __future__ import annotations

import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from raydet.cli.options import parse_overrides
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


def test_weights_that_are_not_there_are_refused_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is from where the command was given: workers run in other directories."""
    monkeypatch.chdir(tmp_path)
    overrides = parse_overrides(["model.backbone.pretrained.path=lite0.safetensors", "seed=7"])
    path = tmp_path / "lite0.safetensors"
    assert overrides == {"model.backbone.pretrained.path": str(path), "seed": 7}
    with pytest.raises(
        ConfigError, match=rf"pretrained\.path: expected a file of weights, {path} does not exist"
    ):
        check_in_subprocess(apply_overrides(recipe("small_lite0"), overrides), workers=1)
    by_name = {"model.backbone.pretrained.path": "timm://resnet50"}
    assert parse_overrides(["model.backbone.pretrained.path=timm://resnet50"]) == by_name
