"""Simulated studies: trials with synthetic scores in real journals and run directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from raydet.metrics.matches import MatchRecords
from raydet.metrics.names import METRIC_NAMES
from raydet.metrics.records import RECORDS, score, write_records
from raydet.runs.results import RunResults
from raydet.runs.run_dir import claim_run_directory
from raydet.runs.usage import Usage
from raydet.track.runs import open_tracker
from raydet.tune.budget import UsageMeter
from raydet.tune.cells import Trial, trial_directory
from raydet.tune.journal import Journal
from raydet.tune.options import StudyOptions
from raydet.tune.phases import all_trials, remember_study, trials_by_phase
from raydet.tune.preregistration import protocol_of, remember_protocol
from raydet.tune.study import Study
from raydet.tune.trial_listener import TrialListener
from raydet.tune.trial_status import records_of
from raydet.tune.view import StudyView
from tests.results import write_checkpoint

USAGE = Usage(gpu_s=1800)
"""Usage of every trial."""
Quality = Callable[[Trial], float | str]
"""The fraction of objects that a trial detects, in 0..1; or its status: pending, failed, stopped."""


def match_records(quality: float, *, seed: int, num_images: int = 60, num_groups: int = 20) -> MatchRecords:
    """Records of a detector that finds about `quality` of the objects, each at all IoU thresholds or none.

    The images and the difficulty of each object do not depend on the seed.
    """
    images, run = np.random.default_rng(0), np.random.default_rng(seed)
    objects_IK = images.integers(1, 5, (num_images, 3))
    image_N = np.repeat(np.arange(num_images), objects_IK.sum(axis=1))
    label_N = np.concatenate([np.repeat(np.arange(3), row) for row in objects_IK])
    ease_N = images.random(len(image_N)) * 0.9 + run.random(len(image_N)) * 0.1
    found_N = ease_N < quality
    score_N = np.where(found_N, 0.5 + 0.5 * run.random(len(found_N)), 0.6 * run.random(len(found_N)))
    order = np.lexsort((-score_N, label_N))
    right_NT = np.repeat(found_N[order, None], 10, axis=1)
    names = np.array([f"image_{index:03d}" for index in range(num_images)])
    groups = np.array([f"group_{index % num_groups:02d}" for index in range(num_images)])
    return MatchRecords(
        names, groups, objects_IK, image_N[order], label_N[order], score_N[order], right_NT, ~right_NT
    )


def simulated_results(trial: Trial, value: float, *, epochs: int = 5) -> RunResults:
    """Results in the format of a real run."""
    classes = [f"AP/{name}" for name in trial.experiment.data.classes]
    history = [
        {
            "epoch": epoch,
            "loss": 2.0 / epoch,
            "val_loss": 2.2 / epoch,
            "train_s": 1.0,
            "images_per_s": 100.0,
            "system/process_memory_megabytes": 900.0,
            **dict.fromkeys([*METRIC_NAMES, *classes], value * (1 - 0.5**epoch) / (1 - 0.5**epochs)),
            "eval_s": 0.1,
        }
        for epoch in range(1, epochs + 1)
    ]
    results = {
        "fingerprint": trial.key,
        "final": history[-1],
        "best": history[-1],
        "history": history,
        "parameters": 1_000_000 + 1000 * trial.cell.number,
        "gflops": 1.5,
        "peak_memory_bytes": 900_000_000 + 1_000_000 * trial.cell.number,
        "workers": 1,
        "loop_s": 5.5,
        "wall_s": 6.0,
        "overhead_s": 0.5,
        "checkpoint_s": 0.1,
        "lost_s": 0.0,
        "skipped_steps": [],
        "digest": "",
    }
    return RunResults.parse(results)


def simulate(
    study: Study,
    storage: Path,
    quality: Quality,
    *,
    seeds: int = 3,
    epochs: int = 5,
    decisions: tuple[dict[str, Any], ...] = (),
    has_records: bool = True,
    has_checkpoints: bool = False,
    num_groups: int = 20,
) -> Path:
    """Simulate a study; returns its directory.

    Args:
        decisions: journal events by which later phases are decided.
    """
    directory = storage / study.name
    options = StudyOptions(storage=storage, seeds=seeds)
    with Journal(directory) as journal:
        remember_study(study, journal)
        remember_protocol(journal, protocol_of(study, options))
        for decision in decisions:
            journal.append(**decision)
        for trial in all_trials(study, journal, seeds):
            found = quality(trial)
            if isinstance(found, str):
                if found != "pending":
                    ending = {
                        "reason": "on purpose",
                        "epoch": 1,
                        "score": 0.9,
                        "bar": 0.95,
                        "usage": USAGE.as_json(),
                    }
                    journal.append(found, key=trial.key, name=trial.name, **ending)
                continue
            run_dir = trial_directory(directory, trial)
            claim_run_directory(run_dir, trial.experiment)
            records = match_records(found, seed=int(trial.key, 16) % 2**32, num_groups=num_groups)
            value = score(records, "mAP") if has_records else found
            results = simulated_results(trial, value, epochs=epochs)
            if has_records:
                write_records(run_dir / RECORDS, records)
            if has_checkpoints:
                write_checkpoint(run_dir, epochs, value)
            (run_dir / "final_results.json").write_text(json.dumps(results.as_json()))
            journal.append("started", key=trial.key, name=trial.name)
            journal.append("finished", key=trial.key, name=trial.name, results=results, usage=USAGE.as_json())
    return directory


def track(study: Study, directory: Path, *, seeds: int = 3) -> None:
    """Log a study's finished trials to MLflow on sqlite next to it, as the driver does with untracked ones."""
    tracker = open_tracker(None, directory=directory.parent, experiment=study.name, command="raydet tune")
    view = StudyView(
        console=Console(quiet=True), study=study.name, task=study.base.task, metric=study.decider
    )
    with Journal(directory) as journal:
        for phase, trials in trials_by_phase(study, journal, seeds).items():
            with TrialListener(
                phase,
                root=directory,
                journal=journal,
                meter=UsageMeter(directory, journal),
                tracker=tracker,
                view=view,
                screening=None,
                will_retry=lambda _: False,
                on_ended=lambda _: None,
            ) as listener:
                for record in records_of(trials, journal):
                    if record.status == "finished" and record.trial.phase == phase:
                        listener.track(record)
