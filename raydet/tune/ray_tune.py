"""Run trials with Ray Tune: each trial is a Ray Train job, and a listener in this process is notified of its events."""

from __future__ import annotations

import dataclasses
import heapq
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import ray.tune

from raydet.config import Experiment
from raydet.errors import ConfigError, PreemptedError, RaydetError, StoppedEarlyError, Terminated
from raydet.launch.capacity import Request
from raydet.launch.cluster import GRACE_S, Workers, allocate_workers, run_in_thread
from raydet.launch.ray_private import HEAD_RESOURCE, keep_keys_out_of_trials
from raydet.redact import redact
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.stop_signal import STOP_FILE, StopKind, request_stop, requested_stop
from raydet.runs.results import RunResults
from raydet.runs.run_dir import claim_run_directory, write_atomically
from raydet.tune.cells import Trial, trial_directory
from raydet.tune.options import StudyOptions
from raydet.tune.slots import Slots
from raydet.tune.trial_listener import TrialListener

HEAD_NODE = {HEAD_RESOURCE: 0.001}
"""Resources of a trial's own process, which only waits for its workers: no CPU, on the node that is not pre-empted."""

BUDGET_INTERVAL_S = 2.0
"""Seconds between two checks of the budget."""

logger = logging.getLogger("raydet")

keep_keys_out_of_trials()


class Outcome(TypedDict, total=False):
    """How a trial has ended, with exactly one field, as JSON between its process and the driver."""

    results: Mapping[str, object]
    """Of a finished trial, see `RunResults.as_json`."""
    stopped: str
    """Why it was stopped early."""
    preempted: str
    """Why it will resume."""
    reason: str
    """Why it failed."""


def execute_trials(
    trials: Sequence[Trial],
    *,
    root: Path,
    options: StudyOptions,
    listener: TrialListener,
    say: Callable[[str], None],
    is_spent: Callable[[], bool] = lambda: False,
) -> None:
    """Run trials, each once; interrupted ones resume from their newest checkpoint.

    Args:
        root: the study's directory.
        say: takes a line about the cluster.
        is_spent: whether the budget is spent; called every few seconds, in a thread. Once it is, running trials save
            and stop, and no further trial starts.

    Raises:
        ConfigError: the cluster is too small, nodes did not join in time, or a GPU budget is set without GPUs.
        Terminated: SIGTERM; running trials have saved, if they could in time.
        KeyboardInterrupt: Ctrl-C; running trials are ended, finished trials are kept.
    """
    share, capacity = allocate_workers(
        trials[0].experiment.train,
        options.worker_options,
        concurrency=options.concurrency,
        say=say,
    )
    if options.budget.gpu_hours is not None and not share.use_gpu:
        raise ConfigError("--budget-gpu-hours limits nothing without GPUs; use --budget-worker-hours")
    most = options.concurrency or (len(trials) if share.use_gpu else 1)
    slots = Slots(Request(share.count, share.resources), capacity, most=most, say=say)
    specs = []
    for trial in trials:
        run_dir = trial_directory(root, trial)
        claim_run_directory(run_dir, trial.experiment)
        (run_dir / STOP_FILE).unlink(missing_ok=True)
        experiment = trial.experiment.to_json()
        specs.append({"name": trial.name, "experiment": experiment, "run_dir": str(run_dir)})
    (root / STOP_FILE).unlink(missing_ok=True)
    task_code = None
    if options.task_code is not None:
        task_code = root / "task.py"  # every node can read it there
        write_atomically(task_code, options.task_code.read_text())
    callback = _TuneCallback({trial.name: trial for trial in trials}, listener, slots, root)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(run_trial, ray.tune.PlacementGroupFactory([HEAD_NODE])),
        param_space={
            "trial": ray.tune.grid_search(specs),
            "study": str(root),
            "workers": dataclasses.asdict(share),
            "fault_tolerance": dataclasses.asdict(options.fault_tolerance),
            "task_code": None if task_code is None else str(task_code),
        },
        tune_config=ray.tune.TuneConfig(search_alg=slots.searcher, reuse_actors=True),
        run_config=ray.tune.RunConfig(
            name="ray_tune",
            storage_path=str(root),
            verbose=0,
            # A trial whose own process dies is restarted; an error of the run is reported as an outcome instead.
            failure_config=ray.tune.FailureConfig(max_failures=options.fault_tolerance.max_failures),
            callbacks=[callback],
            stop=_StopWhenIdle(callback),
        ),
    )
    future = run_in_thread(tuner.fit)
    try:
        with _ending_when_spent(is_spent, callback):
            future.result()
    except Terminated:
        callback.end_trials("the driver was asked to stop")
        deadline = time.monotonic() + GRACE_S
        while callback.running() and time.monotonic() < deadline:
            time.sleep(0.1)
        raise
    finally:
        slots.close()


@contextmanager
def _ending_when_spent(is_spent: Callable[[], bool], callback: _TuneCallback) -> Iterator[None]:
    """While the block runs, end all trials as soon as the budget is spent."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(BUDGET_INTERVAL_S):
            try:
                if is_spent():
                    callback.end_trials("the budget is spent")
                    return
            except Exception:  # e.g. a file that cannot be read now; the next check will count it
                logger.warning("cannot determine the usage of the study", exc_info=True)

    thread = threading.Thread(target=watch, name="raydet-budget", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def run_trial(config: Mapping[str, Any]) -> None:
    """The body of a Tune trial: one Ray Train job. Runs in its own process on the head node."""
    # Errors are reported as an outcome, not raised: Tune would wrap an exception into a traceback.
    ray.tune.report({"outcome": json.dumps(_outcome(config))})


def _outcome(config: Mapping[str, Any]) -> Outcome:
    from raydet.launch.ray_train import launch  # imports torch, which the driver must not

    if requested_stop(Path(config["study"])) is not None:  # the study ends, but Tune still starts trials
        return {"preempted": "before it started"}
    spec = config["trial"]
    try:
        results = launch(
            Experiment.from_json(spec["experiment"], where="the driver's config"),
            run_dir=Path(spec["run_dir"]),
            workers=Workers(**config["workers"]),
            fault_tolerance=FaultTolerance(**config["fault_tolerance"]),
            task_code=None if config["task_code"] is None else Path(config["task_code"]),
        )
    except StoppedEarlyError as error:
        return {"stopped": str(error)}
    except PreemptedError as error:
        return {"preempted": str(error)}
    except RaydetError as error:
        return {"reason": str(error)}
    return {"results": results.as_json()}


class _TuneCallback(ray.tune.Callback):
    """Forwards Tune's events to the listener, and adapts the number of slots."""

    def __init__(
        self, trials: Mapping[str, Trial], listener: TrialListener, slots: Slots, root: Path
    ) -> None:
        self._trials = trials
        self._listener = listener
        self._slots = slots
        self._num_left = len(trials)
        self._root = root
        # When each free slot became free: a trial's wall time includes the start of its process.
        self._free_since = [time.monotonic()] * slots.count
        self._started: dict[str, float] = {}
        self.is_ending = False
        """Whether trials that Tune starts from now on end at once, without notice to the listener."""

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its callbacks for a restore, but the journal serves that purpose."""
        return {}

    def running(self) -> list[Trial]:
        return [self._trials[name] for name in list(self._started)]

    def end_trials(self, reason: str) -> None:
        """Let running trials save and stop, and keep others from starting."""
        # In this order: a trial that starts after `is_ending` is set finds the stop request.
        request_stop(self._root, StopKind.END, reason)
        self.is_ending = True
        for trial in self.running():
            request_stop(trial_directory(self._root, trial), StopKind.END, reason)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._slots.update(0 if self.is_ending else self._num_left)
        new = self._slots.count - len(self._free_since) - len(self._started)
        for _ in range(new):
            heapq.heappush(self._free_since, time.monotonic())
        # A slot that is gone was free, or is held by a running trial and is not freed when that ends.
        del self._free_since[max(0, len(self._free_since) + min(0, new)) :]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]["name"]
        if name not in self._started and not self.is_ending:  # Tune may restart a trial
            self._started[name] = heapq.heappop(self._free_since) if self._free_since else time.monotonic()
            self._listener.started(self._trials[name])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if "outcome" not in trial.last_result:  # it was still pending when the study was stopped
            return
        outcome: Outcome = json.loads(trial.last_result["outcome"])
        with self._ending(trial) as (ended, wall_s):
            if "results" in outcome:
                self._listener.finished(ended, RunResults.parse(outcome["results"]), wall_s)
            elif "stopped" in outcome:
                self._listener.stopped(ended)
            elif "reason" in outcome:
                self._listener.failed(ended, outcome["reason"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        last_line = str(error).strip().splitlines()[-1] if error else "no reason given"
        with self._ending(trial) as (ended, _):
            self._listener.failed(ended, redact(f"its process died: {last_line}"))

    @contextmanager
    def _ending(self, trial: Any) -> Iterator[tuple[Trial, float]]:
        """A trial counts as running until the block, which notifies the listener, has ended."""
        name, now = trial.config["trial"]["name"], time.monotonic()
        since = self._started.get(name)
        self._num_left -= 1
        try:
            yield self._trials[name], 0.0 if since is None else now - since
        finally:
            if since is not None:  # else its process died before it had started
                heapq.heappush(self._free_since, now)
                del self._started[name]


class _StopWhenIdle(ray.tune.Stopper):
    """Ends Tune's run once trials are to end and none is running: otherwise Tune would start all that remain."""

    def __init__(self, callback: _TuneCallback) -> None:
        self._callback: _TuneCallback | None = callback

    def __getstate__(self) -> dict[str, object]:
        """Nothing to restore, as in the callback."""
        return {"_callback": None}

    def __call__(self, trial_id: str, result: Mapping[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._callback is not None and self._callback.is_ending and not self._callback.running()
