"""`raydet train`: one run with its run directory, its tracker and its progress bar."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raydet.checkpoint.retention import intact_checkpoints
from raydet.config import Experiment, Task
from raydet.cpu import refuse_slow_bf16, threads_per_process
from raydet.engine.preflight import check
from raydet.engine.process import run_process
from raydet.errors import PreemptedError, TrackingError
from raydet.launch.worker_options import WorkerOptions
from raydet.metrics.names import deciding_metric, leading_metrics
from raydet.parallel.collectives import World, world_from_environment
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.step_control import StopRequest, stopping_on_sigterm
from raydet.resilience.stop_signal import STOP_FILE
from raydet.runs.epoch_watcher import EpochWatcher
from raydet.runs.results import RunResults
from raydet.runs.run_dir import check_run_directory, claim_run_directory, finished_results, read_progress
from raydet.runs.terminal import exclusive_terminal
from raydet.tasks.build import build_task
from raydet.track.base import Tracker, Upload
from raydet.track.runs import begin_run, end_run, open_tracker

TRACKING_EXPERIMENT = "raydet"

logger = logging.getLogger("raydet")


def train_single(
    experiment: Experiment,
    *,
    run_dir: Path,
    worker_options: WorkerOptions,
    fault_tolerance: FaultTolerance,
    tracking_uri: str | None,
    log_checkpoints: Upload = "none",
) -> None:
    """Train one run, or resume it, or say that it has finished.

    Args:
        worker_options: how many workers, on what.
        fault_tolerance: how often to save, when to give up.
        log_checkpoints: which checkpoints are copied to the tracker.

    Raises:
        RaydetError: see `raydet.engine.process.run_process`.
    """
    workers, use_gpu = worker_options.workers, worker_options.use_gpu
    # On every rank, so that all of them stop.
    check(experiment, build_task(experiment), workers=workers or int(os.environ.get("WORLD_SIZE", "1")))
    results = finished_results(run_dir)
    is_here = workers == 0 or "RAY_ADDRESS" not in os.environ  # otherwise the cluster's workers check
    if results is None and is_here:
        has_cuda = torch.cuda.is_available() if use_gpu is None else use_gpu
        refuse_slow_bf16(experiment.train, use_gpu=has_cuda)
    world = World() if workers or results else world_from_environment(use_gpu=use_gpu)
    if workers == 0:
        processes, default = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.get_num_threads()
        torch.set_num_threads(
            threads_per_process(worker_options.cpus_per_worker, processes=processes, default=default)
        )
    if not world.is_main:
        _run_here(experiment, run_dir, world, fault_tolerance)
        return
    check_run_directory(run_dir, experiment)  # a refusal by either of them leaves nothing behind
    tracker = open_tracker(
        tracking_uri, directory=run_dir.parent, experiment=TRACKING_EXPERIMENT, command="raydet train"
    )
    claim_run_directory(run_dir, experiment)
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    with ExitStack() as stack:
        console = stack.enter_context(exclusive_terminal(run_dir / "third_party.log"))
        if results is not None:
            console.print(f"{run_dir} has already finished, nothing to do", highlight=False, soft_wrap=True)
        else:
            started = time.perf_counter()
            with _tracked(tracker, experiment, run_dir), _progress_bar(console, run_dir):
                if workers == 0:
                    results = _run_here(experiment, run_dir, world, fault_tolerance)
                else:
                    from raydet.launch.cluster import allocate_workers, cluster
                    from raydet.launch.ray_train import launch

                    stack.enter_context(cluster())
                    share, _ = allocate_workers(
                        experiment.train,
                        worker_options,
                        say=lambda text: console.print(text, highlight=False, soft_wrap=True),
                    )
                    results = launch(
                        experiment, run_dir=run_dir, workers=share, fault_tolerance=fault_tolerance
                    )
            results = replace(results, wall_s=round(time.perf_counter() - started, 3))
        _track_end(tracker, experiment, run_dir, results, console, log_checkpoints)
        _print_results(console, experiment.task, results)
        console.print(f"run directory: {run_dir}", highlight=False, soft_wrap=True)


def _track_end(
    tracker: Tracker,
    experiment: Experiment,
    run_dir: Path,
    results: RunResults,
    console: Console,
    upload: Upload,
) -> None:
    """Log the end of the run; a tracker that is down costs a warning, not the run."""
    try:
        run_id = begin_run(tracker, experiment, name=experiment.name, identity=str(run_dir))
        end_run(
            *(tracker, run_id, experiment),
            run_dir=run_dir,
            checkpoints=intact_checkpoints(run_dir),
            results=results,
            upload=upload,
        )
    except Exception as error:
        logger.warning("the tracker failed", exc_info=True)
        console.print(f"tracking failed ({error}); the same command tries again", highlight=False)


def _run_here(
    experiment: Experiment, run_dir: Path, world: World, fault_tolerance: FaultTolerance
) -> RunResults:
    stop = StopRequest()
    with stopping_on_sigterm(stop):
        return run_process(
            experiment, run_dir=run_dir, world=world, fault_tolerance=fault_tolerance, stop=stop
        )


@contextmanager
def _tracked(tracker: Tracker, experiment: Experiment, run_dir: Path) -> Iterator[None]:
    """Log epochs while the block runs; close the tracked run if the block fails."""
    run_id = begin_run(tracker, experiment, name=experiment.name, identity=str(run_dir))
    watcher = EpochWatcher(run_dir, lambda rows: tracker.log_history(run_id, [row.as_json() for row in rows]))
    watcher.start()
    try:
        yield
    except BaseException as error:
        watcher.stop()
        is_requested = isinstance(error, KeyboardInterrupt | PreemptedError)
        try:
            tracker.close_run(run_id, "killed" if is_requested else "failed")
        except TrackingError:  # the error of the run is the one to report
            logger.warning("the tracker failed", exc_info=True)
        raise
    watcher.stop()


@contextmanager
def _progress_bar(console: Console, run_dir: Path) -> Iterator[None]:
    """Show loss, images/s and time left, from the file that the main worker writes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stop = threading.Event()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def follow() -> None:
            while not stop.wait(0.5):
                state = read_progress(run_dir)
                if state is None:
                    continue
                epoch = f"epoch {state['epoch']}/{state['epochs']}"
                text = f"{epoch}  loss {state['loss']:.3f}  {state['images_per_s']:.1f} images/s"
                progress.update(task, description=text, completed=state["step"], total=state["total_steps"])

        thread = threading.Thread(target=follow, name="raydet-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _print_results(console: Console, task: Task, results: RunResults) -> None:
    final, decider = results.final, deciding_metric(task)
    metrics = leading_metrics(task, decider)
    scores = "  ".join(f"{metric.label} {metric.text(final[metric.name])}" for metric in metrics)
    loss = "-" if final.loss is None else f"{final.loss:.4f}"
    lost = f"  lost {results.lost_s:.1f} s" if results.lost_s else ""
    console.print(
        f"epoch {final.epoch}: loss {loss}  {scores}  loop {results.loop_s:.1f} s{lost}", highlight=False
    )
