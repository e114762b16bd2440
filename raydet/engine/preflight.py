"""The checks that a run would fail after the cluster is up: data, split, batch, model, metric."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from raydet.config import Experiment
from raydet.data.build import open_source
from raydet.data.loader import make_sampler
from raydet.data.sampler import batch_plan
from raydet.data.split import split_indices
from raydet.errors import ConfigError
from raydet.metrics.names import VAL_LOSS, deciding_metric
from raydet.models.build import build_model
from raydet.models.heads.base import check_micro_batch
from raydet.parallel.layout import layout_of
from raydet.tasks.base import Task


def check(experiment: Experiment, task: Task, *, workers: int) -> None:
    """Check everything that a run needs and that takes no training.

    Raises:
        DataError: the data are bad.
        ConfigError: the batch does not divide, or is larger than the set, or too small for the head; the strategy does
            not fit the workers; the model cannot be built; the metric that decides is unknown.
    """
    deciding_metric(experiment.task)
    source = open_source(experiment.data)
    train = split_indices(source, experiment.data.split)["train"]
    task.check_training_images(source, train)
    micro_batch = experiment.train.micro_batch
    size, _ = batch_plan(
        experiment.train.global_batch, workers, None if micro_batch == "auto" else micro_batch
    )
    make_sampler(experiment.data.sampling, source, train, experiment.train.global_batch, experiment.seed)
    layout_of(experiment.train.strategy, world_size=workers, shard_ranks=experiment.train.shard_ranks)
    with torch.device("meta"):
        model = build_model(experiment, task.build_head)
    if not (experiment.train.sync_batch_norm and workers > 1):
        check_micro_batch(size, least=model.head.least_images)


def check_weights(experiment: Experiment) -> None:
    """Check that the file of published weights is there; for runs on this machine.

    Raises:
        ConfigError: it is not.
    """
    path = experiment.model.backbone.pretrained.path
    if path is not None and "://" not in path and not Path(path).is_file():
        raise ConfigError(
            f"model.backbone.pretrained.path: expected a file of weights, {path} does not exist; check the path"
        )


def check_decidable(experiment: Experiment, task: Task) -> None:
    """Check that the metric by which a study is decided exists on the validation images.

    Raises:
        ConfigError: it is undefined there.
    """
    metric = deciding_metric(experiment.task)
    if metric == VAL_LOSS:
        return
    source = open_source(experiment.data)
    val = split_indices(source, experiment.data.split)["val"]
    scorer = task.scorer(experiment, source, val)
    scores = scorer.finish(np.zeros((0, scorer.num_columns)))  # as if nothing was predicted
    if (scores.metrics | scores.per_class).get(metric.name) is None:
        raise ConfigError(
            f"{metric.name} is undefined on the {len(val)} validation images, e.g. as they hold no such object: a "
            "study cannot be decided by it; set task.metric to another metric, or change the data or data.split"
        )
