"""How well an anomaly score finds the anomalies in a run's test images, measured at its end on all of its workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from raydet.config import AnomalyScore, Experiment, SplitName
from raydet.data.sources.base import Source
from raydet.data.split import groups_of
from raydet.errors import ConfigError
from raydet.metrics.anomaly_records import ROW_WIDTH, AnomalyRecords, image_rows
from raydet.metrics.names import ANOMALY_METRICS, CALIBRATED_SCORES
from raydet.metrics.records import score
from raydet.models.model import Model
from raydet.ops.class_moments import ClassMoments, FeatureMoments
from raydet.parallel.collectives import World, gather_rows
from raydet.parallel.parallelize import layout_of_run
from raydet.structures import ANOMALY, IGNORE
from raydet.tasks.anomaly_maps import anomaly_map
from raydet.tasks.anomaly_statistics import (
    AnomalyStatistics,
    OutputMoments,
    moments_of_scores,
    output_moments,
)
from raydet.tasks.base import Scores
from raydet.tasks.pixel_outputs import FEATURE_MAP, PixelOutputs, pixel_outputs


class AnomalyEvaluation:
    """See `raydet.tasks.base.FinalEvaluation`.

    Args:
        parts: of the source's images, by `data.split`.

    Raises:
        ConfigError: there are no test images, or no calibration images for a score that needs them.
    """

    def __init__(
        self,
        name: AnomalyScore,
        experiment: Experiment,
        source: Source,
        parts: Mapping[SplitName, Sequence[int]],
    ) -> None:
        needed: list[SplitName] = ["test", "calibration"] if name in CALIBRATED_SCORES else ["test"]
        for part in needed:
            if not parts[part]:
                raise ConfigError(
                    f"task.anomaly ({name}) needs {part} images, data.split ({experiment.data.split.kind}) leaves "
                    "none: change data.split, or set task.anomaly=null"
                )
        self.name, self.experiment, self.source, self.parts = name, experiment, source, parts

    def __call__(self, model: Model, world: World, *, tell: Callable[[str], None]) -> Scores:
        statistics = self._fitted(model, world, tell) if self.name in CALIBRATED_SCORES else None
        rows = [np.zeros((0, ROW_WIDTH))]
        for outputs in self._outputs(model, world, "test", tell):
            counted_HW = outputs.truth_HW != IGNORE
            scores_N = anomaly_map(self.name, outputs, statistics).cpu()[counted_HW]
            is_anomalous_N = (outputs.truth_HW == ANOMALY)[counted_HW]
            rows.append(image_rows(outputs.position, scores_N.numpy(), is_anomalous_N.numpy()))
        indices = self.parts["test"]
        groups = groups_of(self.source.group_ids, self.experiment.data.split)
        records = AnomalyRecords.of_rows(
            gather_rows(np.concatenate(rows), world),
            image_ids=np.array([self.source.image_ids[index] for index in indices], str),
            group_ids=np.array([groups[index] for index in indices], str),
        )
        values = {metric.name: score(records, metric.name) for metric in ANOMALY_METRICS}
        metrics = {name: None if math.isnan(value) else value for name, value in values.items()}
        return Scores(metrics, {}, records)

    def _fitted(self, model: Model, world: World, tell: Callable[[str], None]) -> AnomalyStatistics:
        num_classes, channels = self.experiment.num_classes, model.encoder.channels[FEATURE_MAP]
        own = output_moments(self._outputs(model, world, "calibration", tell), self.source, channels)
        moments = OutputMoments.empty(num_classes, channels)
        for row in gather_rows(_packed(own)[None], world):
            moments = moments.merge(_unpacked(row, num_classes, channels))
        statistics = AnomalyStatistics.of(moments.logits, moments.features)
        if self.name != "heat":
            return statistics
        heat = ClassMoments.empty(1)
        for outputs in self._outputs(model, world, "calibration", tell):
            scores_HW = anomaly_map(self.name, outputs, statistics).cpu()
            heat = heat.merge(moments_of_scores(scores_HW[outputs.truth_HW != IGNORE]))
        total = ClassMoments.empty(1)
        for count, mean, deviation in gather_rows(
            np.array([[heat.count_K[0], heat.mean_K[0], heat.deviation_K[0]]]), world
        ):
            total = total.merge(
                ClassMoments(np.array([count], np.int64), np.array([mean]), np.array([deviation]))
            )
        return statistics.with_heat(total)

    def _outputs(
        self, model: Model, world: World, part: SplitName, tell: Callable[[str], None]
    ) -> Iterator[PixelOutputs]:
        for outputs in pixel_outputs(
            model,
            self.source,
            self.parts[part],
            self.experiment,
            rank=world.rank,
            world_size=world.world_size,
            in_step=layout_of_run(self.experiment.train, world).is_sharded,
        ):
            tell(self.source.image_ids[outputs.index])
            yield outputs


def _packed(moments: OutputMoments) -> NDArray[np.float64]:
    """All numbers in one row; counts of pixels are exact in fp64."""
    arrays = (*moments.logits.arrays().values(), *moments.features.arrays().values())
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in arrays])


def _unpacked(row: NDArray[np.float64], num_classes: int, channels: int) -> OutputMoments:
    """What `_packed` has packed."""
    sizes = [num_classes] * 4 + [num_classes * channels, channels * channels]
    counts, means, deviations, cells, features, scatter = np.split(row, np.cumsum(sizes)[:-1])
    return OutputMoments(
        ClassMoments(counts.astype(np.int64), means, deviations),
        FeatureMoments(
            cells.astype(np.int64),
            features.reshape(num_classes, channels),
            scatter.reshape(channels, channels),
        ),
    )
