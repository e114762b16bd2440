"""From a task's config to the task: the only place that tells tasks apart."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import assert_never

from raydet.config import CustomTask, DetectionTask, Experiment
from raydet.errors import ConfigError
from raydet.tasks.base import Task
from raydet.tasks.detection import Detection


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
        case CustomTask(name=name):
            if code is None:
                raise ConfigError(
                    f"task.kind=custom: the code of the task {name!r} is needed, a Python file with a function "
                    "`task(experiment)`; name it with --space, or pass the task to run_process"
                )
            return _from_file(code, experiment)
        case unreachable:
            assert_never(unreachable)


def _from_file(path: Path, experiment: Experiment) -> Task:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, SyntaxError, ImportError) as error:
        raise ConfigError(f"cannot read the code of the task, {path}: {error}") from error
    if not hasattr(module, "task"):
        raise ConfigError(f"{path} must have a function `task(experiment)`, as the task is a custom one")
    task: Task = module.task(experiment)
    return task
