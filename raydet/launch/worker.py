"""The function of every Ray Train worker: `run_process` with Ray's ranks and reports.

Torch is imported inside the function: the process that starts the workers never needs it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def train_worker(config: Mapping[str, Any]) -> dict[str, object]:
    """Train one run as one of its workers.

    Args:
        config: `experiment` (JSON), `run_dir`, `threads`, `use_gpu`, `fault_tolerance`, `attempt`, `task_code`
            (see `raydet.tasks.build`): plain values only, as Ray stores them.

    Returns:
        The results of the run; Ray keeps those of rank 0.
    """
    since = time.time()
    import ray
    import ray.train
    import torch

    from raydet.config import Experiment
    from raydet.cpu import thread_share
    from raydet.engine.process import run_process
    from raydet.parallel.collectives import World, local_device
    from raydet.resilience.fault_tolerance import FaultTolerance
    from raydet.runs.usage import record_usage
    from raydet.tasks.build import build_task

    node_id = ray.get_runtime_context().get_node_id()
    declared = next(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] == node_id)
    torch.set_num_threads(thread_share(config["threads"], declared=declared))
    context = ray.train.get_context()
    world = World(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=local_device(context.get_local_rank(), use_gpu=config["use_gpu"]),
        ranks_per_node=context.get_local_world_size(),
    )
    run_dir, code = Path(config["run_dir"]), config["task_code"]
    experiment = Experiment.from_json(config["experiment"], where="the driver's config")
    task = build_task(experiment, code=None if code is None else Path(code))
    with record_usage(
        run_dir, since=since, workers=world.world_size, use_gpu=config["use_gpu"], enabled=world.is_main
    ):
        results = run_process(
            experiment,
            run_dir=run_dir,
            world=world,
            task=task,
            # Metrics only: Ray Train would copy checkpoints once more.
            publish=lambda row: ray.train.report(
                {key: x for key, x in row.as_json().items() if x is not None}
            ),
            fault_tolerance=FaultTolerance(**config["fault_tolerance"]),
            # A barrier: every rank asks at the same step.
            ask_cluster=lambda: (
                None if ray.train.get_preemption_info() is None else "a node is about to be pre-empted"
            ),
            attempt=config["attempt"],
        )
    return results.as_json()
