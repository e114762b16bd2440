"""From a task's config to the task: the only place that tells tasks apart."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from raydet.config import CustomTask, DetectionTask, Experiment, SegmentationTask
from raydet.errors import ConfigError
from raydet.tasks.base import Task
from raydet.tasks.code import load_module
from raydet.tasks.detection import Detection
from raydet.tasks.segmentation import Segmentation

METHODS = tuple(name for name in vars(Task) if not name.startswith("_"))
"""What a task has to offer."""


def build_task(experiment: Experiment, *, code: Path | None = None) -> Task:
    """The task of an experiment.

    Args:
        code: the Python file with a function `task(experiment)` that makes a custom task: a config never names code.

    Raises:
        ConfigError: the task is a custom one, and there is no code.
    """
    match experiment.task:
        case DetectionTask() as config:
            return Detection(config)
        case SegmentationTask() as config:
            return Segmentation(config)
        case CustomTask(name=name):
            if code is None:
                raise ConfigError(
                    f"task.kind=custom: the code of the task {name!r} is needed, a Python file with a function "
                    "`task(experiment)`; name it with --space, or pass the task to run_process"
                )
            task: Task = load_module(code, function="task").task(experiment)
            if missing := [method for method in METHODS if not hasattr(task, method)]:
                raise ConfigError(
                    f"{code}: expected a task with the methods {', '.join(METHODS)}, got one without "
                    f"{', '.join(missing)}; add it (see docs/contributing.md)"
                )
            return task
        case unreachable:
            assert_never(unreachable)
