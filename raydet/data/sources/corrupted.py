"""A source with one modality spoiled, picture by picture, as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raydet.data.corruptions import Kind, corrupted
from raydet.data.sources.base import Source, Targets
from raydet.structures import Sample


@dataclass(frozen=True, slots=True)
class CorruptedSource:
    """The same pictures and boxes; the boxes stay where the other modalities show the objects."""

    source: Source
    modality: str
    kind: Kind
    severity: int
    """See `raydet.data.corruptions`."""
    seed: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.source.classes

    @property
    def modalities(self) -> tuple[str, ...]:
        """What every picture has."""
        return self.source.modalities

    @property
    def image_ids(self) -> Sequence[str]:
        """One per picture."""
        return self.source.image_ids

    @property
    def group_ids(self) -> Sequence[str]:
        """The sequence of each picture."""
        return self.source.group_ids

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        """One picture, spoiled: the same at every reading, whatever was read before."""
        sample = self.source.read(index)
        spoiled = corrupted(
            sample.modalities[self.modality],
            self.kind,
            severity=self.severity,
            key=(self.seed, sample.image_id, self.modality),
        )
        return replace(sample, modalities={**sample.modalities, self.modality: spoiled})

    def targets(self, index: int) -> Targets:
        """The boxes alone; no pixel is read."""
        return self.source.targets(index)
