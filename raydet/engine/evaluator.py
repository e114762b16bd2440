"""Metrics of a model on an evaluation set, whatever the task and the number of workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raydet.config import Experiment
from raydet.data.loader import EvalLoader
from raydet.data.sources.base import Source
from raydet.engine.averaging import averaged_weights
from raydet.engine.state import TrainState
from raydet.engine.system_metrics import system_metrics
from raydet.metrics.names import VAL_LOSS
from raydet.models.carry import Streamed
from raydet.models.model import Model
from raydet.parallel.collectives import World, average_statistics, gather_rows
from raydet.parallel.parallelize import layout_of_run, unwrapped
from raydet.resilience.current_phase import enter
from raydet.resilience.out_of_memory import during
from raydet.runs.results import Number
from raydet.structures import Batch
from raydet.tasks.base import FinalEvaluation, Scorer, Scores, Task


class Predictions(NamedTuple):
    """What a model predicted for images."""

    rows: NDArray[np.float64]
    """[N, D], see `Scorer.rows`."""
    losses_L2: NDArray[np.float64]
    """The loss of every batch, all its parts summed, and its number of images."""


@torch.no_grad()
def predict(
    model: nn.Module, batches: Iterable[tuple[Batch, list[int]]], scorer: Scorer, *, device: torch.device
) -> Predictions:
    """The model's predictions as the scorer's rows, and the losses.

    Args:
        model: wrapped or not; left in the mode in which it came.
        batches: batches with the position of each image in the evaluation set; no positions for a batch that another
            worker has, too.
        device: where the model is.
    """
    was_training = model.training
    model.eval()
    streamed = Streamed(model)
    rows, losses = [np.zeros((0, scorer.num_columns))], []
    for batch, positions in batches:
        torch.manual_seed(positions[0] if positions else 0)  # losses are of a sample of the boxes
        # By all workers together where the model is sharded.
        output = streamed(batch.to(device), want="both")
        rows.append(scorer.rows(output.predictions, batch, positions))
        losses.append((float(sum(output.losses.values())), len(positions)))
    model.train(was_training)
    return Predictions(np.concatenate(rows), np.array(losses, dtype=float).reshape(-1, 2))


def mean_loss(losses_L2: NDArray[np.float64]) -> float | None:
    """The mean over images, the same bits in whatever order the batches come; None without images."""
    losses_L, sizes_L = losses_L2[np.lexsort(losses_L2.T)].T
    return float(losses_L @ sizes_L / sizes_L.sum()) if sizes_L.sum() else None


class Evaluator:
    """Evaluates a model on images that are shared out over the workers.

    Args:
        indices: the images, by their index in the source.
        final: what is measured at the end of a run, too.
    """

    def __init__(
        self,
        task: Task,
        experiment: Experiment,
        source: Source,
        indices: Sequence[int],
        world: World,
        *,
        final: FinalEvaluation | None = None,
    ) -> None:
        self.loader = EvalLoader(
            source,
            indices,
            data=experiment.data,
            batch_size=experiment.train.eval_batch,
            rank=world.rank,
            world_size=world.world_size,
            in_step=layout_of_run(experiment.train, world).is_sharded,
        )
        self.scorer = task.scorer(experiment, source, indices)
        self.world = world
        self.final, self.epochs = final, experiment.train.epochs
        self.scores: Scores | None = None
        """Outcome of the newest evaluation."""
        self.final_scores: Scores | None = None
        """Outcome of the final one."""

    def __call__(self, state: TrainState) -> dict[str, Number]:
        """The metrics of a training state by name: validation loss, the task's, and the load of the machine."""
        with during("evaluate", (), self.world.device), averaged_weights(state.optimizer):
            scores, loss = self.evaluate(unwrapped(state.model))
            metrics = {VAL_LOSS.name: loss, **scores.metrics, **scores.per_class}
            if self.final is not None and state.epoch == self.epochs:
                metrics |= self._evaluate_finally(unwrapped(state.model))
        return {**metrics, **system_metrics(self.world.device)}

    def evaluate(self, model: nn.Module) -> tuple[Scores, float | None]:
        """Scores and mean loss, the same on every rank, whatever their number."""
        average_statistics(model, self.world)
        rows, losses = predict(model, self._batches(), self.scorer, device=self.world.device)
        loss = mean_loss(gather_rows(losses, self.world))
        self.scores = self.scorer.finish(gather_rows(rows, self.world))
        return self.scores, loss

    def _evaluate_finally(self, model: nn.Module) -> Mapping[str, Number]:
        assert self.final is not None
        assert isinstance(model, Model)
        was_training = model.training
        model.eval()
        with torch.no_grad():
            self.final_scores = self.final(
                model, self.world, tell=lambda image_id: enter("evaluate", (image_id,))
            )
        model.train(was_training)
        return self.final_scores.metrics

    def _batches(self) -> Iterator[tuple[Batch, list[int]]]:
        for batch, positions in self.loader:
            enter("evaluate", batch.image_ids)  # a sign of progress: a long evaluation is not a stall
            yield batch, positions
