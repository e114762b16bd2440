"""What a task contributes to training and evaluation. The engine knows no more of it than this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raydet.config import Experiment, SplitName
from raydet.data.sources.base import Source
from raydet.metrics.records import Records
from raydet.models.heads.base import Head
from raydet.models.model import Model
from raydet.parallel.collectives import World
from raydet.structures import Batch


@dataclass(frozen=True, slots=True)
class Scores:
    """The outcome of an evaluation; None stands for "undefined", e.g. no object in a size bin."""

    metrics: dict[str, float | None]
    """By name, in the order of tables."""
    per_class: dict[str, float | None]
    """The main metric of every class, by `<metric>/<class>`."""
    records: Records
    """What the metrics can be computed from again."""


class Scorer(Protocol):
    """Turns predictions on an evaluation set into metrics.

    Every worker calls `rows` for its own batches; the rows of all workers are gathered, in any order, for `finish`.
    """

    num_columns: int
    """Width of a row."""

    def rows(self, predictions: Any, batch: Batch, positions: Sequence[int]) -> NDArray[np.float64]:
        """The model's predictions on a batch as numbers: [N, num_columns].

        Args:
            predictions: `Output.predictions` of the model.
            positions: of the batch's images in the evaluation set; empty for a batch that another worker has, too.
        """

    def finish(self, rows: NDArray[np.float64]) -> Scores:
        """The metrics of all rows, which do not depend on their order."""


class FinalEvaluation(Protocol):
    """Measures a model once, at the end of its run, on images that the run has not seen."""

    def __call__(self, model: Model, world: World, *, tell: Callable[[str], None]) -> Scores:
        """The same on every worker; all of them call it, with the model in evaluation mode.

        Args:
            tell: takes the id of every image that comes next, as a sign of progress.
        """


class Task(Protocol):
    """What is learnt, and how well."""

    def build_head(self, experiment: Experiment, channels: Sequence[int]) -> Head:
        """The head of the model.

        Args:
            channels: of each level of the neck's pyramid, the finest first.
        """

    def check_training_images(self, source: Source, indices: Sequence[int]) -> None:
        """Check that something can be learnt from these images.

        Raises:
            DataError: there is nothing to learn, e.g. no object in any image.
        """

    def cost(self, source: Source, index: int) -> int:
        """How much an image costs beside its pixels: the worst batch has the images of the largest cost."""

    def scorer(self, experiment: Experiment, source: Source, indices: Sequence[int]) -> Scorer:
        """The scorer of an evaluation set, given by indices into the source."""

    def final_evaluation(
        self, experiment: Experiment, source: Source, parts: Mapping[SplitName, Sequence[int]]
    ) -> FinalEvaluation | None:
        """What is measured at the end of a run only; None: nothing.

        Args:
            parts: of the source's images, by `data.split`.

        Raises:
            ConfigError: the images for it are missing.
        """

    def results(self, experiment: Experiment) -> Mapping[str, Any]:
        """What final_results.json says of how the task was measured (plain JSON)."""
