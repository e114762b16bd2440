"""What a study will cost, before it runs."""

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
"""Operations of a training step over those of its forward pass."""


@dataclass(frozen=True, slots=True)
class StudyCost:
    """Of one command that runs everything."""

    num_trials: int
    operations: float
    """Floating-point operations of training; evaluation, a few percent, is left out."""

    def hours(self, tflops: float) -> float:
        """On one device that sustains so many 10^12 operations per second, or divided over several."""
        return self.operations / (tflops * 1e12) / 3600


def study_cost(study: Study, *, num_seeds: int) -> StudyCost:
    """Count trials and operations.

    Fusions differ by a few percent and sensors alone cost half: each trial is counted as the baseline's fusion with its
    own backbone and neck. Trials that are not decided yet are counted as the mean of the others.

    Raises:
        DataError: the data cannot be opened.
    """
    nothing = Events([])
    trials = all_trials(study, nothing, 1)
    kinds = Counter(_essentials(study.base, trial.experiment) for trial in trials)
    passes = sum(count * forward_flops(experiment)["total"] for experiment, count in kinds.items())
    source = open_source(study.base.data)
    num_images = len(split_indices(source, study.base.data.split)[0]) * study.base.train.epochs
    num_trials = len(trials) * num_seeds + num_undecided_trials(study, nothing, num_seeds)
    mean = passes / len(trials)
    return StudyCost(num_trials, STEP_FACTOR * mean * num_trials * num_images)


def _essentials(base: Experiment, experiment: Experiment) -> Experiment:
    """What decides how much a step costs: equal for most trials of most studies."""
    mine = experiment.model
    model = ModelConfig(backbone=mine.backbone, neck=mine.neck, head=mine.head)
    return base.model_copy(update={"name": "", "model": model})
