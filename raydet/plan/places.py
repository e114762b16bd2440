"""Names for the parts of a detector, in the order of its forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from raydet.models.detector import Detector
from raydet.models.units import units_of

NECK = "FPN"
HEAD = "head"


@dataclass(frozen=True, slots=True, eq=False)
class StreamStage:
    """One stage of one stream."""

    name: str
    module: nn.Module
    blocks: list[nn.Module]

    @property
    def embedding(self) -> str:
        """What runs before the blocks."""
        return f"{self.name}, embedding"

    @property
    def block(self) -> str:
        """Each block: all of a stage are alike."""
        return f"{self.name}, block"

    @property
    def norm(self) -> str:
        """What runs after the blocks."""
        return f"{self.name}, norm"


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """Stage 1, 2, 3 or 4 of the encoder: both streams, then their fusion."""

    streams: list[StreamStage]
    fusion_name: str
    fusion: nn.Module


def sections_of(detector: Detector) -> Iterator[Section]:
    """The encoder from the finest stage on."""
    blocks = set(units_of(detector).blocks)
    encoder = detector.encoder
    for index, fusion in enumerate(encoder.fusions):
        streams = [
            StreamStage(
                f"stage {index + 1} {stream}",
                stages[index],
                [module for module in stages[index].modules() if module in blocks],
            )
            for stream, stages in (("rgb", encoder.rgb_stages), ("aux", encoder.aux_stages))
            if index < len(stages)
        ]
        yield Section(streams, f"fusion {index + 1}", fusion)
