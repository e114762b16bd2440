"""The estimated cost of a study."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from raydet.config import Experiment, ModelConfig
from raydet.data.build import open_source
from raydet.data.split import split_indices
from raydet.plan.flops import forward_flops
from raydet.tune.journal import Events
from raydet.tune.phases import all_trials, num_undecided_trials
from raydet.tune.study import Study

STEP_FACTOR = 3
"""Ratio of the operations of a training step to those of its forward pass."""


@dataclass(frozen=True, slots=True)
class StudyCost:
    """The cost of running a whole study."""

    num_trials: int
    operations: float
    """Floating-point operations of training; evaluation adds a few percent."""

    def hours(self, tflops: float) -> float:
        """Device-hours at a sustained rate of `tflops` 10^12 operations per second."""
        return self.operations / (tflops * 1e12) / 3600


def study_cost(study: Study, *, num_seeds: int) -> StudyCost:
    """Count the trials and operations of a study.

    Each trial counts as the baseline's fusion with its own backbone and neck: other fusions differ by a few percent,
    a single sensor costs half. Trials of undecided phases count as the mean of the others.

    Raises:
        DataError: the data cannot be opened.
    """
    no_events = Events([])
    trials = all_trials(study, no_events, 1)
    kinds: Counter[Experiment] = Counter()
    for parts in (trial.experiment.model for trial in trials):  # most have the same model in all that costs
        model = ModelConfig(backbone=parts.backbone, neck=parts.neck, head=parts.head)
        kinds[study.base.model_copy(update={"name": "", "model": model})] += 1
    passes = sum(count * forward_flops(experiment)["total"] for experiment, count in kinds.items())
    source = open_source(study.base.data)
    num_images = len(split_indices(source, study.base.data.split)["train"]) * study.base.train.epochs
    num_trials = len(trials) * num_seeds + num_undecided_trials(study, no_events, num_seeds)
    return StudyCost(num_trials, STEP_FACTOR * (passes / len(trials)) * num_trials * num_images)
