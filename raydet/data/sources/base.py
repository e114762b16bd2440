"""What every source offers, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from raydet.structures import Sample

Targets = tuple[Tensor, Tensor, tuple[int, int]]
"""boxes_xyxy float32 [N, 4] in source pixels, labels int64 [N], (height, width) of the image."""


class Source(Protocol):
    """An ordered set of annotated images.

    Opening one checks everything that can be checked without decoding pixels, so that bad data are found before
    anything expensive starts. A source is picklable: loader processes get a copy.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What every image has, in the order rgb, thermal, event."""

    @property
    def image_ids(self) -> Sequence[str]:
        """One per image, all different."""

    @property
    def group_ids(self) -> Sequence[str]:
        """The sequence of each image; all the same where the source cannot tell."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> Sample:
        """One image with its boxes, in source pixels and without padding.

        Raises:
            DataError: the image cannot be read.
        """

    def targets(self, index: int) -> Targets:
        """The boxes alone; no pixel is read."""
