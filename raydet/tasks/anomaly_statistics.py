"""What some anomaly scores are fitted with: moments of a model's outputs on images without anomalies.

Two passes over the images. The first gathers the moments of the largest logit by predicted class, and those of the
features by true class, of at most `FEATURES_PER_CLASS` cells per class and image, drawn by the image's id. The second
gathers those of HEAT under these statistics, for its normalisation.

Legend: K classes, C channels, N cells of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.randomness import random_stream
from raydet.data.sources.base import Source
from raydet.errors import DataError
from raydet.ops.class_moments import ClassMoments, FeatureMoments
from raydet.structures import ANOMALY, IGNORE
from raydet.tasks.pixel_outputs import PixelOutputs

FEATURES_PER_CLASS = 2000


@dataclass(frozen=True, slots=True)
class AnomalyStatistics:
    """What a calibration fits."""

    logits: ClassMoments
    """Of the largest logit, by predicted class."""
    features: FeatureMoments
    """By true class."""
    precision_CC: NDArray[np.float64]
    heat_mean: float = 0.0
    heat_std: float = 1.0

    @classmethod
    def of(cls, logits: ClassMoments, features: FeatureMoments) -> Self:
        """Statistics without HEAT's normalisation.

        Raises:
            DataError: there are less than two labelled pixels.
        """
        return cls(logits, features, features.precision())

    def with_heat(self, moments: ClassMoments) -> Self:
        """The statistics with HEAT's normalisation, given its moments without."""
        return replace(self, heat_mean=float(moments.mean_K[0]), heat_std=float(moments.std[0]))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All fields by name, for a file."""
        return {
            **{f"logits.{name}": x for name, x in self.logits.arrays().items()},
            **{f"features.{name}": x for name, x in self.features.arrays().items()},
            "heat": np.array([self.heat_mean, self.heat_std]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` gave."""
        logits, features = (
            {name.removeprefix(kind): x for name, x in arrays.items() if name.startswith(kind)}
            for kind in ("logits.", "features.")
        )
        mean, std = arrays["heat"].tolist()
        statistics = cls.of(ClassMoments.from_arrays(logits), FeatureMoments.from_arrays(features))
        return replace(statistics, heat_mean=mean, heat_std=std)


class OutputMoments(NamedTuple):
    """The first pass over some images."""

    logits: ClassMoments
    features: FeatureMoments

    @classmethod
    def empty(cls, num_classes: int, num_channels: int) -> OutputMoments:
        """No images."""
        return cls(ClassMoments.empty(num_classes), FeatureMoments.empty(num_classes, num_channels))

    def merge(self, other: OutputMoments) -> OutputMoments:
        """The moments of both sets of images."""
        return OutputMoments(self.logits.merge(other.logits), self.features.merge(other.features))


def output_moments(outputs: Iterable[PixelOutputs], source: Source, num_channels: int) -> OutputMoments:
    """The moments of a model's outputs.

    Args:
        outputs: on images of the source.
        num_channels: of the features.

    Raises:
        DataError: an image shows an anomaly, or an output is not finite.
    """
    num_classes = len(source.classes)
    found = OutputMoments.empty(num_classes, num_channels)
    for each in outputs:
        image_id = source.image_ids[each.index]
        if num_anomalous := int((each.truth_HW == ANOMALY).sum()):
            raise DataError(
                f"image {image_id}: expected one without anomalies to calibrate on, got {num_anomalous:,} anomalous "
                "pixels; calibrate on other images (data.split)"
            )
        best_HW, class_HW = (x_HW.cpu() for x_HW in each.logits_1KHW[0].max(dim=0))
        counted_HW = each.truth_HW != IGNORE
        own = OutputMoments(
            ClassMoments.of(best_HW[counted_HW], class_HW[counted_HW], num_classes=num_classes),
            FeatureMoments.of(
                each.features_1Chw, _sampled_cells(each, image_id, num_classes), num_classes=num_classes
            ),
        )
        found = found.merge(own)
    return found


def moments_of_scores(scores_N: Tensor) -> ClassMoments:
    """The moments of scores, whatever their class."""
    return ClassMoments.of(scores_N, torch.zeros(len(scores_N), dtype=torch.long), num_classes=1)


def _sampled_cells(outputs: PixelOutputs, image_id: str, num_classes: int) -> Tensor:
    """Labels of the cells, -1 for those that are not among the drawn ones of their class: [1, h, w]."""
    ids_N = outputs.cell_ids_hw.flatten()
    chosen_N = torch.full_like(ids_N, -1)
    for label in range(num_classes):
        cells = torch.nonzero(ids_N == label)[:, 0]
        if len(cells) > FEATURES_PER_CLASS:
            order = random_stream(image_id, "calibration", label).permutation(len(cells))
            cells = cells[torch.from_numpy(order[:FEATURES_PER_CLASS])]
        chosen_N[cells] = label
    return chosen_N.reshape(1, *outputs.cell_ids_hw.shape).to(outputs.features_1Chw.device)
