"""The preflight check in a subprocess, so that the driver keeps neither torch nor the model in memory."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from pathlib import Path

from raydet.config import Experiment
from raydet.errors import OutOfMemoryError


def check_in_subprocess(experiment: Experiment, *, workers: int, task_code: Path | None = None) -> None:
    """Run `raydet.engine.preflight.check` in a subprocess.

    Raises:
        DataError, ConfigError: as raised by the check.
        OutOfMemoryError: the process was killed.
    """
    # The terminal sends Ctrl-C to all of its processes; only the driver reports it.
    ignore_ctrl_c = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=signal.signal, initargs=ignore_ctrl_c
    ) as pool:
        try:
            pool.submit(_check, experiment.to_json(), workers, task_code).result()
        except BrokenProcessPool:
            raise OutOfMemoryError(
                "the process that builds the model once, to check it, was killed; is there enough memory?"
            ) from None
        finally:
            for process in active_children():  # a regular exit takes seconds
                process.kill()


def _check(text: str, workers: int, task_code: Path | None) -> None:
    from raydet.engine.preflight import check, check_decidable, check_weights
    from raydet.tasks.build import build_task

    experiment = Experiment.from_json(text, where="the driver's config")
    task = build_task(experiment, code=task_code)
    if "RAY_ADDRESS" not in os.environ:  # the workers of a cluster have files of their own
        check_weights(experiment)
    check(experiment, task, workers=workers)
    check_decidable(experiment, task)
