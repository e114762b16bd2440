"""The interface of every source, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raydet.structures import Sample, Target

Targets = tuple[Target, tuple[int, int]]
"""The target in source pixels, (height, width) of the image."""


class Source(Protocol):
    """An ordered set of annotated images.

    Opening a source checks everything that does not need decoded pixels, so that bad data are found before anything
    expensive starts. A source is picklable: loader processes get a copy.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of every image, in the order rgb, thermal, event."""

    @property
    def image_ids(self) -> Sequence[str]:
        """One id per image, all different."""

    @property
    def group_ids(self) -> Sequence[str]:
        """The sequence of each image; all the same if the source has no sequences."""

    def __len__(self) -> int:
        """The number of images."""

    def read(self, index: int) -> Sample:
        """One image with its target in source pixels, without padding.

        Raises:
            DataError: the image cannot be read.
        """

    def targets(self, index: int) -> Targets:
        """The target of an image, of the same type for all images; of the pixels, at most a mask is read.

        Raises:
            DataError: the mask cannot be read.
        """
