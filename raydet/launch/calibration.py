"""Calibrating a run on several Ray actors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raydet.config import SplitName
from raydet.data.convert import CPU_WARNING_S
from raydet.engine.calibration import Block, Calibration, Work, calibrate
from raydet.engine.open_run import TrainedRun, open_trained

logger = logging.getLogger("raydet")


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
    actors = [actor.remote(run.run_dir, split, str(run.device)) for _ in range(workers)]

    def on_all(work: Work, blocks: Sequence[Block]) -> Iterator[Any]:
        reference = ray.put(work)  # once: statistics have megabytes
        waiting, found = list(reversed(list(enumerate(blocks)))), dict[int, Any]()
        # A block goes only to an actor that has started: those that wait for a CPU delay nothing.
        busy: dict[Any, tuple[Any, int | None]] = {each.started.remote(): (each, None) for each in actors}
        for number in range(len(blocks)):
            while number not in found:
                done, _ = ray.wait(list(busy), num_returns=1, timeout=CPU_WARNING_S)
                if not done and all(block is None for _, block in busy.values()):
                    logger.warning(
                        "no worker has started yet: each needs a free CPU of the Ray cluster; waiting"
                    )
                for answer in done:
                    worker, block = busy.pop(answer)
                    try:
                        result = ray.get(answer)
                    except RayTaskError as error:
                        raise error.cause from None
                    if block is not None:
                        found[block] = result
                    if waiting:
                        block, images = waiting.pop()
                        busy[worker.applied.remote([reference], images)] = worker, block
            yield found.pop(number)

    return calibrate(run, split, mapper=on_all)


class _Worker:
    """Keeps the run open."""

    def __init__(self, run_dir: Path, split: SplitName, device: str) -> None:
        import torch

        self._run = open_trained(run_dir, split=split, device=torch.device(device))

    def started(self) -> None:
        """Answers once the run is open."""

    def applied(self, reference: list[Any], block: Block) -> Any:
        work: Work = ray.get(reference[0])
        return work(self._run, block)
