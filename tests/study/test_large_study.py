"""The report of a study of 300 trials and 20 epochs takes at most a minute and 2 GiB."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raydet.recipes import recipe
from raydet.track.mlflow import MLflowTracker
from raydet.track.runs import SQLITE, begin_run, end_run
from raydet.tune.cells import Trial
from raydet.tune.controls import with_controls
from raydet.tune.study import GridPhase
from tests.study.simulated import simulate, simulated_results
from tune_spaces import gaff_phase1

STAGES = gaff_phase1.STAGES.model_copy(update={"values": gaff_phase1.STAGE_SETS[:4], "default": (1,)})
REDUCTION = gaff_phase1.SE_REDUCTION.model_copy(update={"values": (1, 2, 4, 8, 12, 16)})
FACTORS = (STAGES, REDUCTION, gaff_phase1.INTER_SHARED, gaff_phase1.MERGE_BOTTLENECK)
PHASE = GridPhase(name="grid", vary=tuple(factor.path for factor in FACTORS))
STUDY = with_controls(
    gaff_phase1.study(recipe("demo")).model_copy(
        update={"factors": FACTORS, "phases": (PHASE,), "hypotheses": ()}
    )
)
NUM_TRIALS = 3 * (4 * 6 * 2 * 2 + 3)


def quality(trial: Trial) -> float:
    generator = np.random.default_rng(int(trial.key, 16) % 2**32)
    return (0.4 if trial.cell.is_control else 0.6) + generator.normal(0, 0.01)


@pytest.mark.exhaustive
def test_three_hundred_trials(tmp_path: Path) -> None:
    trials: list[Trial] = []

    def noted(trial: Trial) -> float:
        trials.append(trial)
        return quality(trial)

    directory = simulate(STUDY, tmp_path, noted, epochs=20)
    assert len(trials) == NUM_TRIALS
    tracker = MLflowTracker(f"sqlite:///{tmp_path / SQLITE}", STUDY.name)
    parent = tracker.open_run(PHASE.name, identity=PHASE.name)
    for trial in trials:
        results = simulated_results(trial, quality(trial), epochs=20)
        run = begin_run(tracker, trial.experiment, name=trial.name, identity=trial.key, parent=parent)
        end_run(tracker, run, trial.experiment, run_dir=tmp_path / "nowhere", checkpoints=[], results=results)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "raydet.report", str(directory)], capture_output=True, text=True, timeout=300
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time, which depends little on how busy the machine is.
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0, done.stderr
    assert cpu_s < 60
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 * 2**20  # KiB
