"""Means and deviations of pixels by class, summed up image by image on any number of workers.

A state holds numbers of pixels, means and sums of squared deviations in fp64. Merged states (Chan, Golub and LeVeque,
Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979) equal the state of all pixels up to
rounding, about 1e-15 relative, however the pixels were divided; unlike sums of squares, they lose no digits where the
mean is far larger than the deviations.

Legend: K classes, C channels, N pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from raydet.errors import DataError

RIDGE = 1e-4
"""Added to the diagonal of a covariance, so that it has an inverse."""
CHUNK_NUMBERS = 1 << 22
"""Bounds the memory of `FeatureMoments.of`: a chunk of pixels has about this many features, 32 MiB in fp64."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassMoments:
    """Mean and standard deviation of one value per pixel, by class.

    >>> values, classes = torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 1])
    >>> moments = ClassMoments.of(values, classes, num_classes=3)
    >>> moments.mean_K.tolist(), moments.std.tolist(), moments.count_K.tolist()
    ([2.0, 7.0, 0.0], [1.0, 1.0, 1.0], [2, 1, 0])
    """

    count_K: Ints
    mean_K: Floats
    """0 for a class without pixels."""
    deviation_K: Floats
    """Sum of the squared deviations from the mean."""

    @classmethod
    def empty(cls, num_classes: int) -> Self:
        """No pixels."""
        return cls(np.zeros(num_classes, np.int64), np.zeros(num_classes), np.zeros(num_classes))

    @classmethod
    def of(cls, values: Tensor, classes: Tensor, *, num_classes: int) -> Self:
        """The moments of some pixels.

        Args:
            values: of any shape.
            classes: int, of the same shape; pixels of other classes than 0..K-1 are left out.

        Raises:
            DataError: a value is not finite.
        """
        classes_N = classes.flatten().cpu().numpy().astype(np.int64, copy=False)
        values_N = values.flatten().cpu().to(torch.float64).numpy()
        is_counted_N = (classes_N >= 0) & (classes_N < num_classes)
        if not is_counted_N.all():
            classes_N, values_N = classes_N[is_counted_N], values_N[is_counted_N]
        _check_finite(values_N)
        count_K = np.bincount(classes_N, minlength=num_classes)
        divisor_K = np.maximum(count_K, 1)
        mean_K = np.bincount(classes_N, values_N, minlength=num_classes) / divisor_K
        rest_N = values_N - mean_K[classes_N]
        # What rounding left in the mean: without it, few digits of a small deviation would be right.
        rest_K = np.bincount(classes_N, rest_N, minlength=num_classes) / divisor_K
        deviation_K = np.bincount(classes_N, rest_N**2, minlength=num_classes) - count_K * rest_K**2
        return cls(count_K, mean_K + rest_K, np.maximum(deviation_K, 0.0))

    def merge(self, other: ClassMoments) -> ClassMoments:
        """The moments of both sets of pixels."""
        count_K = self.count_K + other.count_K
        share_K = other.count_K / np.maximum(count_K, 1)
        difference_K = other.mean_K - self.mean_K
        return ClassMoments(
            count_K,
            self.mean_K + difference_K * share_K,
            self.deviation_K + other.deviation_K + difference_K**2 * self.count_K * share_K,
        )

    @property
    def std(self) -> Floats:
        """Population standard deviation: [K]; 1 for a class of one pixel or none."""
        return np.where(self.count_K > 1, np.sqrt(self.deviation_K / np.maximum(self.count_K, 1)), 1.0)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All fields by name, for a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` gave."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FeatureMoments:
    """Mean features by class, and the one covariance that all classes share."""

    count_K: Ints
    mean_KC: Floats
    """0 for a class without pixels."""
    scatter_CC: Floats
    """Sum over all pixels of the outer product of the deviation from the pixel's class mean with itself."""

    @classmethod
    def empty(cls, num_classes: int, num_channels: int) -> Self:
        """No pixels."""
        return cls(
            np.zeros(num_classes, np.int64),
            np.zeros((num_classes, num_channels)),
            np.zeros((num_channels, num_channels)),
        )

    @classmethod
    def of(cls, features_BChw: Tensor, classes_Bhw: Tensor, *, num_classes: int) -> FeatureMoments:
        """The moments of the pixels of a batch; computed on its device.

        Args:
            classes_Bhw: int; pixels of other classes than 0..K-1 are left out.

        Raises:
            DataError: a feature is not finite.
        """
        num_channels = features_BChw.shape[1]
        moments: FeatureMoments = cls.empty(num_classes, num_channels)
        for features_CN, classes_N in zip(features_BChw.flatten(2), classes_Bhw.flatten(1), strict=True):
            step = max(1, CHUNK_NUMBERS // num_channels)
            for chunk_CN, chunk_N in zip(features_CN.split(step, dim=1), classes_N.split(step), strict=True):
                is_counted_N = (chunk_N >= 0) & (chunk_N < num_classes)
                values_NC = chunk_CN.T[is_counted_N].double()
                labels_N = chunk_N[is_counted_N].long()
                members_NK = one_hot(labels_N, num_classes).double()
                count_K = members_NK.sum(dim=0)
                mean_KC = members_NK.T @ values_NC / count_K.clamp(min=1)[:, None]
                rest_NC = values_NC - mean_KC[labels_N]
                scatter_CC = rest_NC.T @ rest_NC
                _check_finite(scatter_CC.cpu().numpy())
                moments = moments.merge(
                    cls(
                        count_K.cpu().numpy().astype(np.int64),
                        mean_KC.cpu().numpy(),
                        scatter_CC.cpu().numpy(),
                    )
                )
        return moments

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """The moments of both sets of pixels."""
        count_K = self.count_K + other.count_K
        share_K = other.count_K / np.maximum(count_K, 1)
        difference_KC = other.mean_KC - self.mean_KC
        between_CC = (difference_KC * (self.count_K * share_K)[:, None]).T @ difference_KC
        return FeatureMoments(
            count_K,
            self.mean_KC + difference_KC * share_K[:, None],
            self.scatter_CC + other.scatter_CC + between_CC,
        )

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Whether a class has pixels, and so a mean: [K]."""
        return self.count_K > 0

    def precision(self) -> Floats:
        """Inverse of the shared covariance, scatter / (pixels - 1) + RIDGE on the diagonal: [C, C].

        Raises:
            DataError: there are less than two pixels.
        """
        num_pixels = int(self.count_K.sum())
        if num_pixels < 2:
            raise DataError(
                f"expected two labelled pixels at least for a covariance, got {num_pixels}; calibrate on more images"
            )
        covariance_CC = self.scatter_CC / (num_pixels - 1) + RIDGE * np.eye(len(self.scatter_CC))
        precision_CC = np.linalg.inv(covariance_CC)
        return (precision_CC + precision_CC.T) / 2

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All fields by name, for a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` gave."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})  # type: ignore[arg-type]


def _check_finite(values: Floats) -> None:
    if not np.isfinite(values).all():
        raise DataError(
            "expected finite logits and features to calibrate on, got NaN or infinity; use another checkpoint"
        )
