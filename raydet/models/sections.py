"""Names for the parts of a detector, in the order of its forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.backbones.stage import Stage

NECK = "FPN"
HEAD = "head"


@dataclass(frozen=True, slots=True, eq=False)
class BlockGroup:
    """Consecutive blocks of equal memory cost."""

    name: str
    blocks: list[nn.Module]


@dataclass(frozen=True, slots=True, eq=False)
class StreamStage:
    name: str
    module: nn.Module
    groups: list[BlockGroup]

    @property
    def embedding(self) -> str:
        """Scope of the layers before the blocks."""
        return f"{self.name}, embedding"

    @property
    def norm(self) -> str:
        """Scope of the layers after the blocks."""
        return f"{self.name}, norm"


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """Stage 1, 2, 3 or 4 of the encoder: both streams, then their fusion."""

    streams: list[StreamStage]
    fusion_name: str
    fusion: nn.Module


def sections_of(encoder: DualStreamEncoder) -> list[Section]:
    """The sections of the encoder, the finest stage first."""
    sections = []
    for index, fusion in enumerate(encoder.fusions):
        streams = [
            _stream_stage(f"stage {index + 1} {stream}", stages[index])
            for stream, stages in (("rgb", encoder.rgb_stages), ("aux", encoder.aux_stages))
            if index < len(stages)
        ]
        sections.append(Section(streams, f"fusion {index + 1}", fusion))
    return sections


def _stream_stage(name: str, stage: nn.Module) -> StreamStage:
    assert isinstance(stage, Stage)
    groups = stage.block_groups()
    if len(groups) == 1:
        return StreamStage(name, stage, [BlockGroup(f"{name}, block", groups[0])])
    numbered = [BlockGroup(f"{name}, block {number}", group) for number, group in enumerate(groups, 1)]
    return StreamStage(name, stage, numbered)
