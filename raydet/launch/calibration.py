"""Calibrating a run on several Ray actors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from raydet.config import SplitName
from raydet.engine.calibration import Block, Calibration, Work, calibrate
from raydet.engine.open_run import TrainedRun, open_trained


def calibrated_on_ray(run: TrainedRun, split: SplitName, *, workers: int) -> Calibration:
    """The same as `calibrate`, to the last bit on machines of one kind, on actors of the connected cluster.

    A lost actor is restarted, and its block done again. The run's directory must be reachable on every node.

    Args:
        workers: actors of one CPU each, and of one GPU if the run is on one.

    Raises:
        RaydetError: as `calibrate`.
    """
    has_gpu = run.device.type == "cuda"
    actor = ray.remote(num_cpus=1, num_gpus=int(has_gpu), max_restarts=-1, max_task_retries=-1)(_Worker)
    pool = ActorPool([actor.remote(run.run_dir, split, str(run.device)) for _ in range(workers)])

    def on_all(work: Work, blocks: Sequence[Block]) -> Iterator[Any]:
        reference = ray.put(work)  # once: statistics have megabytes
        try:
            yield from pool.map(lambda worker, block: worker.applied.remote([reference], block), list(blocks))
        except RayTaskError as error:
            raise error.cause from None

    return calibrate(run, split, mapper=on_all)


class _Worker:
    """Keeps the run open."""

    def __init__(self, run_dir: Path, split: SplitName, device: str) -> None:
        import torch

        self._run = open_trained(run_dir, split=split, device=torch.device(device))

    def applied(self, reference: list[Any], block: Block) -> Any:
        work: Work = ray.get(reference[0])
        return work(self._run, block)
