"""Base of sources that change the images of another source and keep its ids, groups and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydet.data.sources.base import Source, Targets


@dataclass(frozen=True, slots=True)
class WrappedSource:
    """Forwards everything to `source`; subclasses add `read`, and override what else changes."""

    source: Source

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.source.modalities

    @property
    def image_ids(self) -> Sequence[str]:
        return self.source.image_ids

    @property
    def group_ids(self) -> Sequence[str]:
        return self.source.group_ids

    def __len__(self) -> int:
        return len(self.source)

    def targets(self, index: int) -> Targets:
        return self.source.targets(index)


def unwrapped(source: Source) -> Source:
    """The innermost source, without its wrappers."""
    while isinstance(source, WrappedSource):
        source = source.source
    return source
