"""What a source is that changes the images of another: the same images, ids, groups and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydet.data.sources.base import Source, Targets


@dataclass(frozen=True, slots=True)
class WrappedSource:
    """Base of such sources; they add `read`, and change what else they must.

    Args:
        source: whose images they are.
    """

    source: Source

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.source.classes

    @property
    def modalities(self) -> tuple[str, ...]:
        """What every image has."""
        return self.source.modalities

    @property
    def image_ids(self) -> Sequence[str]:
        """One per image."""
        return self.source.image_ids

    @property
    def group_ids(self) -> Sequence[str]:
        """The sequence of each image."""
        return self.source.group_ids

    def __len__(self) -> int:
        return len(self.source)

    def targets(self, index: int) -> Targets:
        """The boxes alone; no pixel is read."""
        return self.source.targets(index)


def unwrapped(source: Source) -> Source:
    """The source at the bottom: what its files say, wrappers do not."""
    while isinstance(source, WrappedSource):
        source = source.source
    return source
