"""Names for the parts of a detector, in the order of its forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from raydet.models.backbones.stage import Stage
from raydet.models.detector import Detector

NECK = "FPN"
HEAD = "head"


@dataclass(frozen=True, slots=True, eq=False)
class BlockRun:
    """Blocks that follow one another and are alike."""

    name: str
    blocks: list[nn.Module]


@dataclass(frozen=True, slots=True, eq=False)
class StreamStage:
    """One stage of one stream."""

    name: str
    module: nn.Module
    runs: list[BlockRun]

    @property
    def embedding(self) -> str:
        """What runs before the blocks."""
        return f"{self.name}, embedding"

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
    encoder = detector.encoder
    for index, fusion in enumerate(encoder.fusions):
        streams = [
            _stream_stage(f"stage {index + 1} {stream}", stages[index])
            for stream, stages in (("rgb", encoder.rgb_stages), ("aux", encoder.aux_stages))
            if index < len(stages)
        ]
        yield Section(streams, f"fusion {index + 1}", fusion)


def _stream_stage(name: str, stage: nn.Module) -> StreamStage:
    assert isinstance(stage, Stage)
    runs = stage.block_runs()
    numbers = [""] if len(runs) == 1 else [f" {number}" for number in range(1, len(runs) + 1)]
    return StreamStage(
        name,
        stage,
        [BlockRun(f"{name}, block{number}", run) for number, run in zip(numbers, runs, strict=True)],
    )
