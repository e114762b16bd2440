"""What would go wrong after the cluster is up, found before: data, split, batch, model."""

from __future__ import annotations

from raydet.config import Experiment
from raydet.data.build import open_source
from raydet.data.sampler import ElasticSampler, batch_plan
from raydet.data.split import split_indices
from raydet.models.build import describe_parameters
from raydet.parallel.layout import layout_of


def check(experiment: Experiment, *, workers: int) -> None:
    """Go through everything that a run needs and that takes no training.

    Raises:
        DataError: the data are bad.
        ConfigError: the batch does not divide, or is larger than the set; the strategy does not fit the workers; the
            model cannot be built.
    """
    train, _ = split_indices(open_source(experiment.data), experiment.data.split)
    micro_batch = experiment.train.micro_batch
    batch_plan(experiment.train.global_batch, workers, None if micro_batch == "auto" else micro_batch)
    ElasticSampler(num_samples=len(train), global_batch=experiment.train.global_batch, seed=experiment.seed)
    layout_of(experiment.train.strategy, world_size=workers, shard_ranks=experiment.train.shard_ranks)
    describe_parameters(experiment)
