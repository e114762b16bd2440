"""A source with one modality corrupted, image by image, as it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raydet.data.corruptions import Kind, corrupted
from raydet.data.sources.wrapped import WrappedSource
from raydet.structures import Sample


@dataclass(frozen=True, slots=True)
class CorruptedSource(WrappedSource):
    """The same images with a corruption; the target stays where the other modalities show the objects."""

    modality: str
    kind: Kind
    severity: int
    """0 (none) to `corruptions.NUM_SEVERITIES`."""
    seed: int = 0

    def read(self, index: int) -> Sample:
        """One corrupted image: the same at every read, in any order."""
        sample = self.source.read(index)
        changed = corrupted(
            sample.modalities[self.modality],
            self.kind,
            severity=self.severity,
            key=(self.seed, sample.image_id, self.modality),
        )
        return replace(sample, modalities={**sample.modalities, self.modality: changed})
