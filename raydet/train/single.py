"""`raydet train`: one run with its directory, its tracker and its progress bar."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raydet.config import Experiment
from raydet.data.build import open_source
from raydet.data.sampler import batch_plan
from raydet.data.split import split_indices
from raydet.errors import ConfigError
from raydet.parallel.collectives import World, world_from_environment
from raydet.track.base import Tracker
from raydet.track.runs import begin_run, end_run, open_tracker
from raydet.train.checkpoints import LocalCheckpoints, newest_checkpoint
from raydet.train.process import run_process
from raydet.train.record import claim_run_directory, finished_results, read_progress
from raydet.train.terminal import own_terminal
from raydet.train.watch import EpochWatcher

TRACKING_EXPERIMENT = "raydet"


def train_single(
    experiment: Experiment,
    *,
    run_dir: Path,
    workers: int,
    cpus_per_worker: int | None,
    use_gpu: bool | None,
    tracking_uri: str | None,
) -> None:
    """Train one run, or continue it, or say that it has ended.

    Args:
        workers: Ray Train workers; 0 trains in this process without Ray, as one rank under `torchrun`.

    Raises:
        RaydetError: see `raydet.train.process.run_process`.
    """
    world = world_from_environment() if workers == 0 else World()
    if not world.is_main:
        _run_here(experiment, run_dir, world)
        return
    if workers < 0:
        raise ConfigError(f"--workers wants 0 or more, got {workers}")
    _check(experiment, workers or world.world_size)
    claim_run_directory(run_dir, experiment)
    results = finished_results(run_dir)
    if results is not None:
        console = Console()
        console.print(f"{run_dir} has ended already, nothing to do", highlight=False, soft_wrap=True)
        _print_results(console, results)
        return
    with ExitStack() as stack:
        tracker = open_tracker(tracking_uri, directory=run_dir.parent, experiment=TRACKING_EXPERIMENT)
        run_id = stack.enter_context(_tracked(tracker, experiment, run_dir))
        console = stack.enter_context(own_terminal(run_dir / "noise.log"))
        started = time.perf_counter()
        with _progress_bar(console, run_dir):
            if workers == 0:
                results = _run_here(experiment, run_dir, world)
            else:
                from raydet.train.launch import cluster, launch, workers_for

                stack.enter_context(cluster())
                share = workers_for(workers, cpus=cpus_per_worker, use_gpu=use_gpu)
                results = launch(experiment, run_dir=run_dir, workers=share)
        wall_s = time.perf_counter() - started
        end_run(tracker, run_id, run_dir=run_dir, results=results | {"wall_s": round(wall_s, 3)})
        _print_results(console, results)
        console.print(f"run directory: {run_dir}", highlight=False, soft_wrap=True)


def _check(experiment: Experiment, workers: int) -> None:
    """Find bad data and an impossible batch before anything expensive starts."""
    split_indices(open_source(experiment.data), experiment.data.split)
    batch_plan(experiment.train.global_batch, workers, experiment.train.micro_batch)


def _run_here(experiment: Experiment, run_dir: Path, world: World) -> dict[str, Any]:
    return run_process(
        experiment,
        run_dir=run_dir,
        world=world,
        publish=LocalCheckpoints(run_dir, keep=experiment.train.keep_checkpoints),
        resume_from=newest_checkpoint(run_dir),
    )


@contextmanager
def _tracked(tracker: Tracker, experiment: Experiment, run_dir: Path) -> Iterator[str]:
    """Log epochs while the block runs; close the run where it fails."""
    run_id = begin_run(tracker, experiment, name=experiment.name, identity=str(run_dir))
    watcher = EpochWatcher(run_dir, lambda rows: tracker.log_history(run_id, rows))
    watcher.start()
    try:
        yield run_id
    except BaseException as error:
        watcher.stop()
        tracker.close_run(run_id, "killed" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    watcher.stop()


@contextmanager
def _progress_bar(console: Console, run_dir: Path) -> Iterator[None]:
    """Loss, images/s and time left, drawn from the file that the main worker writes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stop = threading.Event()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def follow() -> None:
            while not stop.wait(0.5):
                state = read_progress(run_dir)
                if state is not None:
                    text = (
                        f"epoch {state['epoch']}/{state['epochs']}  loss {state['loss']:.3f}  "
                        f"{state['images_per_s']:.1f} images/s"
                    )
                    progress.update(
                        task, description=text, completed=state["step"], total=state["total_steps"]
                    )

        thread = threading.Thread(target=follow, name="raydet-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _print_results(console: Console, results: dict[str, Any]) -> None:
    final = results["final"]
    shown = {name: final[name] for name in ("loss", "mAP", "mAP_50", "mAP_75")}
    text = "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in shown.items())
    console.print(f"epoch {final['epoch']}: {text}  loop {results['loop_s']:.1f} s", highlight=False)
