"""A task that raydet does not know: which class has the most objects in an image.

Its config holds the metrics as data; its code comes with this file, which is a space as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from raydet.config import CustomTask, Experiment, Metric
from raydet.data.sources.base import Source
from raydet.metrics.records import MeanRecords
from raydet.models.heads.base import Head
from raydet.structures import Batch, HeadOutput, Want, boxes_of
from raydet.tasks.base import Scores
from raydet.tune.study import Factor, GridPhase, Study

METRICS = (
    Metric(name="accuracy", label="accuracy", is_resampleable=True),
    Metric(name="error", label="error", higher_is_better=False, is_resampleable=True),
)


class MajorityHead(Head):
    """Classifies the mean of the coarsest map."""

    loss_names = ("loss_majority",)

    def __init__(self, channels: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, num_classes + 1)
        )

    def forward(self, pyramid: Mapping[str, Tensor], batch: Batch, *, want: Want) -> HeadOutput:
        logits_BK = self._logits(pyramid)
        num_classes = logits_BK.shape[1] - 1
        counts_BK = (
            nn.functional.one_hot(batch.labels.clamp(min=0), num_classes) * (batch.labels >= 0)[..., None]
        )
        losses = {}
        if want != "predictions":
            losses["loss_majority"] = nn.functional.cross_entropy(logits_BK, majority(counts_BK.sum(dim=1)))
        return HeadOutput(losses, None if want == "losses" else logits_BK.argmax(dim=1))

    def parts(self, pyramid: Mapping[str, Tensor]) -> Mapping[str, Callable[[], object]]:
        return {"majority": lambda: self._logits(pyramid)}

    def _logits(self, pyramid: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self.layers(list(pyramid.values())[-1].mean(dim=(2, 3))).float()
        return logits


def majority(counts_BK: Tensor) -> Tensor:
    """The class with the most objects, or K for none: [B]."""
    return counts_BK.argmax(dim=1).where(counts_BK.sum(dim=1) > 0, counts_BK.shape[1])


class Majority:
    """See `raydet.tasks.base.Task`."""

    def build_head(self, experiment: Experiment, channels: Sequence[int]) -> Head:
        assert isinstance(experiment.task, CustomTask)
        return MajorityHead(channels[-1], experiment.num_classes, experiment.task.settings["hidden"])

    def check_training_images(self, source: Source, indices: Sequence[int]) -> None:
        pass

    def cost(self, source: Source, index: int) -> int:
        return 1

    def scorer(self, experiment: Experiment, source: Source, indices: Sequence[int]) -> MajorityScorer:
        return MajorityScorer(experiment, source, indices)

    def final_evaluation(self, *arguments: object) -> None:
        """Nothing."""

    def results(self, experiment: Experiment) -> Mapping[str, Any]:
        return {}


class MajorityScorer:
    """See `raydet.tasks.base.Scorer`; a row is a position and a class."""

    num_columns = 2

    def __init__(self, experiment: Experiment, source: Source, indices: Sequence[int]) -> None:
        counts = [
            np.bincount(
                boxes_of(source.targets(i)[0], source.image_ids[i]).labels.numpy(),
                minlength=experiment.num_classes,
            )
            for i in indices
        ]
        self.truth_I = np.array([row.argmax() if row.any() else len(row) for row in counts])
        self.image_ids = np.array([source.image_ids[i] for i in indices])
        self.group_ids = np.array([source.group_ids[i] for i in indices])

    def rows(self, predictions: Tensor, batch: Batch, positions: Sequence[int]) -> NDArray[np.float64]:
        found = predictions[: len(positions)].double().cpu().numpy()
        return np.column_stack([np.array(positions, dtype=float), found])

    def finish(self, rows: NDArray[np.float64]) -> Scores:
        predicted_I = np.full(len(self.truth_I), -1.0)
        predicted_I[rows[:, 0].astype(int)] = rows[:, 1]
        right_I = (predicted_I == self.truth_I).astype(float)
        records = MeanRecords(self.image_ids, self.group_ids, {"accuracy": right_I, "error": 1.0 - right_I})
        accuracy = float(right_I.mean())
        return Scores({"accuracy": accuracy, "error": 1.0 - accuracy}, {}, records)


def task(experiment: Experiment) -> Majority:
    """The code of the custom task."""
    return Majority()


def config(base: Experiment) -> Experiment:
    """A base experiment with this task."""
    return base.model_copy(
        update={"task": CustomTask(name="majority", metrics=METRICS, settings={"hidden": 16})}
    )


def study(base: Experiment) -> Study:
    """Two arms: hidden layers of two widths."""
    width = Factor(path="task.settings.hidden", letter="h", default=16, values=(16, 4))
    return Study(
        name="majority",
        base=config(base),
        factors=(width,),
        phases=(GridPhase(name="widths", vary=(width.path,)),),
        needs_controls=False,
    )
