"""Run a study of thousands of trials by its real driver (journal, view, tracker, summary, usage) without Ray.

    python -m tests.study.many_trials STORAGE SEEDS FIGURES.json [TRACKING_URI]

A trial ends as soon as it is recorded, with synthetic results. One in fifty fails the first time.
"""

from __future__ import annotations

import csv
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import raydet.launch.cluster
import raydet.tune.ray_tune
from raydet.recipes import recipe
from raydet.runs.epoch_watcher import EPOCHS
from raydet.runs.run_dir import claim_run_directory
from raydet.runs.usage import record_usage
from raydet.tune.cells import Trial, trial_directory
from raydet.tune.controls import with_controls
from raydet.tune.options import StudyOptions
from raydet.tune.run import run_study
from raydet.tune.study import GridPhase, Study
from raydet.tune.trial_listener import TrialListener
from tests.study.simulated import simulated_results
from tune_spaces import gaff_phase1

REDUCTIONS = (1, 2, 4, 8, 12, 16)
NUM_CELLS = 8 * len(REDUCTIONS) * 2 * 2 + 3
CONCURRENCY = 8
NUM_EPOCHS = 5
FAILS_EVERY = 50


def study() -> Study:
    """192 cells and three controls."""
    reduction = gaff_phase1.SE_REDUCTION.model_copy(update={"values": REDUCTIONS})
    factors = (gaff_phase1.STAGES, reduction, gaff_phase1.INTER_SHARED, gaff_phase1.MERGE_BOTTLENECK)
    phase = GridPhase(name="grid", vary=tuple(factor.path for factor in factors))
    settings: dict[str, Any] = {"factors": factors, "phases": (phase,), "hypotheses": ()}
    return with_controls(gaff_phase1.study(recipe("demo")).model_copy(update=settings))


class Executor:
    """Replaces `execute_trials`; measures when each trial was recorded in journal and tracker."""

    def __init__(self) -> None:
        self.wall_s = [time.perf_counter()]
        self.cpu_s = [time.process_time()]
        self._failed: set[str] = set()

    def __call__(self, trials: Sequence[Trial], *, root: Path, listener: TrialListener, **_: object) -> None:
        running: deque[Trial] = deque()
        for trial in [*trials, *[None] * CONCURRENCY]:
            if trial is not None:
                self._begin(trial, root, listener)
                running.append(trial)
            if running and (trial is None or len(running) == CONCURRENCY):
                self._end(running.popleft(), listener)

    def _begin(self, trial: Trial, root: Path, listener: TrialListener) -> None:
        run_dir = trial_directory(root, trial)
        claim_run_directory(run_dir, trial.experiment)
        with record_usage(run_dir, since=time.time() - 6, workers=2, use_gpu=True):
            pass
        with (run_dir / EPOCHS).open("w", newline="") as file:
            history = [row.as_json() for row in simulated_results(trial, 0.5, epochs=NUM_EPOCHS).history]
            writer = csv.DictWriter(file, history[0].keys())
            writer.writeheader()
            writer.writerows(history)
        listener.started(trial)

    def _end(self, trial: Trial, listener: TrialListener) -> None:
        if int(trial.key, 16) % FAILS_EVERY == 0 and trial.key not in self._failed:
            self._failed.add(trial.key)
            listener.failed(trial, "on purpose")
        else:
            score = 0.5 + int(trial.key, 16) % 1000 / 1e4
            listener.finished(trial, simulated_results(trial, score, epochs=NUM_EPOCHS), 6.0)
        is_tracked = threading.Event()
        listener._queue.put(is_tracked.set)  # real trials take longer than the tracker
        is_tracked.wait()
        self.wall_s.append(time.perf_counter())
        self.cpu_s.append(time.process_time())


def most_resident_bytes() -> int:
    """Peak memory of this process; `getrusage` would include its parent's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


@contextmanager
def no_cluster() -> Iterator[None]:
    yield


def main(storage: Path, seeds: int, figures: Path, tracking_uri: str | None = None) -> None:
    """Run the study and write its cost to a file."""
    executor = Executor()
    raydet.tune.ray_tune.execute_trials = executor  # type: ignore[assignment]
    raydet.launch.cluster.cluster = no_cluster
    started = time.perf_counter()
    code = run_study(study(), StudyOptions(storage=storage, seeds=seeds, tracking_uri=tracking_uri))
    found = {
        "code": code,
        "seconds": time.perf_counter() - started,
        "resident_bytes": most_resident_bytes(),
        "wall_s": executor.wall_s,
        "cpu_s": executor.cpu_s,
    }
    figures.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
