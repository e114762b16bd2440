"""What a run needs, looked at in a process of its own: torch and the model are gone with it, not kept by the driver."""

from __future__ import annotations

import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context

from raydet.config import Experiment
from raydet.errors import OutOfMemoryError


def check_apart(experiment: Experiment, *, workers: int) -> None:
    """`raydet.engine.preflight.check`.

    Raises:
        DataError, ConfigError: as that does.
        OutOfMemoryError: the process was killed.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_leave_ctrl_c) as pool:
        try:
            pool.submit(_check, experiment.to_json(), workers).result()
        except BrokenProcessPool:
            raise OutOfMemoryError(
                "the process that builds the model once, to check it, was killed; is there enough memory?"
            ) from None
        finally:
            for process in active_children():  # to end takes it seconds
                process.kill()


def _leave_ctrl_c() -> None:
    # The terminal sends it to all of its processes; the driver says what is to be said.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check(experiment: str, workers: int) -> None:
    from raydet.engine.preflight import check

    check(Experiment.from_json(experiment, where="the driver's config"), workers=workers)
