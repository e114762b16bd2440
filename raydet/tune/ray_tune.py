"""Trials on Ray Tune: each one a Ray Train job, its fate told to a listener in this process."""

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
from typing import Any, Protocol

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import ray.tune

from raydet.config import Experiment
from raydet.errors import ConfigError, PreemptedError, RaydetError, StoppedEarlyError, Terminated
from raydet.launch.capacity import Request
from raydet.launch.cluster import GRACE_S, Workers, allotted, in_a_thread
from raydet.launch.ray_private import HEAD_RESOURCE, keep_keys_out_of_trials
from raydet.redact import redact
from raydet.resilience.fault_tolerance import FaultTolerance
from raydet.resilience.stop_signal import STOP_FILE, StopKind, request_stop, requested_stop
from raydet.runs.run_dir import claim_run_directory
from raydet.tune.cells import Trial, trial_directory
from raydet.tune.options import StudyOptions
from raydet.tune.slots import Places

HEAD_NODE = {HEAD_RESOURCE: 0.001}
"""A trial itself only waits for its workers: it takes no CPU, and stands on the node that is not pre-empted."""

BUDGET_INTERVAL_S = 2.0
"""Between two looks at what the study has taken."""

logger = logging.getLogger("raydet")

keep_keys_out_of_trials()


class Listener(Protocol):
    """Hears of every trial, in the process that runs the study."""

    def started(self, trial: Trial) -> None:
        """The trial's process is up."""

    def finished(self, trial: Trial, results: dict[str, Any], wall_s: float) -> None:
        """The trial has ended well, after `wall_s` in which its share of the cluster was taken."""

    def failed(self, trial: Trial, reason: str) -> None:
        """The trial has ended without results."""

    def stopped(self, trial: Trial) -> None:
        """The trial was stopped early."""


def execute_trials(
    trials: Sequence[Trial],
    *,
    root: Path,
    options: StudyOptions,
    listener: Listener,
    say: Callable[[str], None],
    is_spent: Callable[[], bool] = lambda: False,
) -> None:
    """Run trials, each once; those that were interrupted continue from their newest checkpoint.

    Args:
        root: the study's directory.
        say: takes a line about the cluster.
        is_spent: whether the budget is; asked every few seconds, from a thread. Then what runs saves and stops, and
            nothing starts any more.

    Raises:
        ConfigError: the cluster has too little for that, nodes did not come in time, or the budget limits what it has
            not.
        Terminated: SIGTERM; what runs has saved, if it could in time.
        KeyboardInterrupt: Ctrl-C; what runs is ended, what has ended is kept.
    """
    share, capacity = allotted(
        trials[0].experiment.train,
        options.workers,
        fewest=options.min_workers,
        cpus=options.cpus_per_worker,
        use_gpu=options.use_gpu,
        concurrency=options.concurrency,
        wait_s=options.wait_s,
        say=say,
    )
    if options.budget.gpu_hours is not None and not share.use_gpu:
        raise ConfigError("--budget-gpu-hours limits nothing without GPUs; take --budget-worker-hours")
    most = options.concurrency or (len(trials) if share.use_gpu else 1)
    places = Places(Request(share.count, share.resources), capacity, most=most, say=say)
    for trial in trials:
        run_dir = trial_directory(root, trial)
        claim_run_directory(run_dir, trial.experiment)
        (run_dir / STOP_FILE).unlink(missing_ok=True)
    (root / STOP_FILE).unlink(missing_ok=True)
    relay = _Relay({trial.name: trial for trial in trials}, listener, places, root)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(run_trial, ray.tune.PlacementGroupFactory([HEAD_NODE])),
        param_space={
            "trial": ray.tune.grid_search([_spec(trial, root) for trial in trials]),
            "study": str(root),
            "workers": dataclasses.asdict(share),
            "fault_tolerance": dataclasses.asdict(options.fault_tolerance),
        },
        tune_config=ray.tune.TuneConfig(search_alg=places.searcher, reuse_actors=True),
        run_config=ray.tune.RunConfig(
            name="ray_tune",
            storage_path=str(root),
            verbose=0,
            # A trial whose own process dies starts again; what a run raises on purpose is told, and final.
            failure_config=ray.tune.FailureConfig(max_failures=options.fault_tolerance.max_failures),
            callbacks=[relay],
            stop=_StopWhenEmpty(relay),
        ),
    )
    future = in_a_thread(tuner.fit)
    try:
        with _watching(is_spent, relay):
            future.result()
    except Terminated:
        relay.end("the driver was asked to stop")
        deadline = time.monotonic() + GRACE_S
        while relay.running() and time.monotonic() < deadline:
            time.sleep(0.1)
        raise
    finally:
        places.close()


@contextmanager
def _watching(is_spent: Callable[[], bool], relay: _Relay) -> Iterator[None]:
    """End what runs as soon as the budget is spent."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(BUDGET_INTERVAL_S):
            try:
                if is_spent():
                    relay.end("the budget is spent")
                    return
            except Exception:  # a file that cannot be read now; what is spent by then counts at the next look
                logger.warning("cannot tell what the study has taken", exc_info=True)

    thread = threading.Thread(target=watch, name="raydet-budget", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def run_trial(config: Mapping[str, Any]) -> None:
    """The body of a Tune trial: one Ray Train job. Runs in a process of its own on the head node."""
    # A report, not an exception: Tune would wrap it into a traceback.
    ray.tune.report({"outcome": json.dumps(_outcome(config))})


def _outcome(config: Mapping[str, Any]) -> dict[str, Any]:
    from raydet.launch.ray_train import launch  # torch comes with it, which the study's driver has no use for

    if (
        requested_stop(Path(config["study"])) is not None
    ):  # the study ends, but Tune would go through its list
        return {"preempted": "before it began"}
    spec = config["trial"]
    try:
        results = launch(
            Experiment.from_json(spec["experiment"], where="the driver's config"),
            run_dir=Path(spec["run_dir"]),
            workers=Workers(**config["workers"]),
            fault_tolerance=FaultTolerance(**config["fault_tolerance"]),
        )
    except StoppedEarlyError as error:
        return {"stopped": str(error)}
    except PreemptedError as error:
        return {"preempted": str(error)}
    except RaydetError as error:
        return {"reason": str(error)}
    return {"results": results}


def _spec(trial: Trial, root: Path) -> dict[str, str]:
    return {
        "name": trial.name,
        "experiment": trial.experiment.to_json(),
        "run_dir": str(trial_directory(root, trial)),
    }


class _Relay(ray.tune.Callback):
    """Tells the listener what Tune tells us, and Tune how many trials have a place."""

    def __init__(self, trials: Mapping[str, Trial], listener: Listener, places: Places, root: Path) -> None:
        self._trials = trials
        self._listener = listener
        self._places = places
        self._num_left = len(trials)
        self._root = root
        # When each place for a trial became free: the time until a process is up counts as the trial's.
        self._free_since = [time.monotonic()] * places.count
        self._started: dict[str, float] = {}
        self.is_ending = False
        """Trials that Tune starts from now on end at once: nobody is to hear of them."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune stores its callbacks for a restore; the journal is our restore."""
        return {}

    def running(self) -> list[Trial]:
        """Trials whose processes are up."""
        return [self._trials[name] for name in list(self._started)]

    def end(self, reason: str) -> None:
        """Have what runs save and stop, and keep the rest from beginning."""
        # In this order: what is told to nobody, because it starts after the second line, has read the first one.
        request_stop(self._root, StopKind.END, reason)
        self.is_ending = True
        for trial in self.running():
            request_stop(trial_directory(self._root, trial), StopKind.END, reason)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._places.look(0 if self.is_ending else self._num_left)
        new = self._places.count - len(self._free_since) - len(self._started)
        for _ in range(new):
            heapq.heappush(self._free_since, time.monotonic())
        # What is gone was free, or is still held by a trial, whose place is not counted again.
        del self._free_since[max(0, len(self._free_since) + min(0, new)) :]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]["name"]
        if name not in self._started and not self.is_ending:  # Tune may start a trial again
            self._started[name] = heapq.heappop(self._free_since) if self._free_since else time.monotonic()
            self._listener.started(self._trials[name])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if "outcome" not in trial.last_result:  # it was still waiting when all was stopped
            return
        outcome = json.loads(trial.last_result["outcome"])
        with self._ending(trial) as (ours, wall_s):
            if "results" in outcome:
                self._listener.finished(ours, outcome["results"], wall_s)
            elif "stopped" in outcome:
                self._listener.stopped(ours)
            elif "reason" in outcome:
                self._listener.failed(ours, outcome["reason"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        last_line = str(error).strip().splitlines()[-1] if error else "no reason given"
        with self._ending(trial) as (ours, _):
            self._listener.failed(ours, redact(f"its process died: {last_line}"))

    @contextmanager
    def _ending(self, trial: Any) -> Iterator[tuple[Trial, float]]:
        """It counts as running until the block, in which the listener hears of it, has ended."""
        name = trial.config["trial"]["name"]
        self._num_left -= 1
        now = time.monotonic()
        since = self._started.get(name)
        try:
            yield self._trials[name], 0.0 if since is None else now - since
        finally:
            if since is not None:  # else it has died before it was up
                heapq.heappush(self._free_since, now)
                del self._started[name]


class _StopWhenEmpty(ray.tune.Stopper):
    """Ends Tune's list once it is to end and nothing runs any more: Tune would go through all of it otherwise."""

    def __init__(self, relay: _Relay) -> None:
        self._relay: _Relay | None = relay

    def __getstate__(self) -> dict[str, Any]:
        """As the relay's."""
        return {"_relay": None}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._relay is not None and self._relay.is_ending and not self._relay.running()
