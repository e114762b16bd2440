"""Two backbones without shared weights, fused after every stage; their stages may have memory.

Follows CMX (arXiv 2203.04838): RGB in one stream, all other modalities in the other, four fused maps for the detector.

Departures from the paper:
1. The fusion, and what enters the next stage (see `fusion.base`), can be chosen per stage.
2. Drop-path rates are per block and equal at equal depth in both streams.
3. Any backbone that is divided into stages can be used (see `stage`). Stages with memory (see `recurrent`) are given
   their state; convolutions, attention and fusions see the frames of all clips as one batch.

Legend: B batch (the frames of all clips in time-major order), C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from raydet.models.backbones.recurrent import LSTMState, RecurrentStage
from raydet.models.backbones.stage import STRIDES, Four, Stage
from raydet.models.fusion.base import Fusion, Guides
from raydet.models.init import init_segformer
from raydet.structures import Carry

Init = Literal["segformer", "fusions", "seed"]


class EncoderOutput(NamedTuple):
    """What an encoder returns."""

    maps: list[Tensor]
    """Fused maps, the finest first."""
    guides: list[Guides]
    """Of the fusions that have losses of their own."""
    carry: Carry
    """The states of the stages with memory after the last frame: `rgb.1.h`, `rgb.1.c`, ..., `aux.4.c`."""


class DualStreamEncoder(nn.Module):
    """Images of two groups of modalities in, four fused maps out.

    Args:
        rgb_stages: four `Stage` modules, the first stream.
        aux_stages: `num_aux_stages(fusions)` `Stage` modules, the second stream.
        fusions: one per stage.
        strides: pixels per cell of each map.
        init: "segformer" initialises the whole encoder as in the papers, "fusions" the fusions only, "seed" nothing
            (FFM always initialises itself).
    """

    def __init__(
        self,
        *,
        rgb_stages: nn.ModuleList,
        aux_stages: nn.ModuleList,
        fusions: Sequence[Fusion],
        strides: Four = STRIDES,
        init: Init = "segformer",
    ) -> None:
        super().__init__()
        assert len(aux_stages) == num_aux_stages(fusions), (
            "one aux stage too few, or one that no fusion reads"
        )
        self.channels = tuple(
            fusion.fused_channels(stage.channels)
            for stage, fusion in zip(_each(rgb_stages), fusions, strict=True)
        )
        self.strides = strides
        self.rgb_stages = rgb_stages
        self.aux_stages = aux_stages
        self.fusions = nn.ModuleList(fusions)
        if init != "seed":
            (self if init == "segformer" else self.fusions).apply(init_segformer)

    def stages(self) -> Iterator[Stage]:
        """All stages of the first stream, then of the second."""
        yield from _each(self.rgb_stages)
        yield from _each(self.aux_stages)

    def forward(
        self, rgb_BCHW: Tensor, aux_BCHW: Tensor, carry: Carry | None = None, *, clip_frames: int = 1
    ) -> EncoderOutput:
        """Inputs are normalised images, at least 32 x 32.

        Args:
            carry: the states before the first frame; none are zeros.
            clip_frames: see `Batch`.
        """
        rgb_BCHW = rgb_BCHW.contiguous(memory_format=torch.channels_last)
        aux_BCHW = aux_BCHW.contiguous(memory_format=torch.channels_last)
        output = EncoderOutput([], [], {})

        def run(stage: nn.Module, x_BCHW: Tensor, name: str) -> Tensor:
            if not isinstance(stage, RecurrentStage):
                return stage(x_BCHW)
            names = [f"{name}.{part}" for part in ("h", "c")]
            state = LSTMState(*(carry[part] for part in names)) if carry else None
            x_BCHW, state = stage(x_BCHW, state, clip_frames=clip_frames)
            output.carry.update(zip(names, state, strict=True))
            return x_BCHW

        for stage, fusion in enumerate(self.fusions):
            rgb_BCHW = run(self.rgb_stages[stage], rgb_BCHW, f"rgb.{stage + 1}")
            if stage < len(self.aux_stages):
                aux_BCHW = run(self.aux_stages[stage], aux_BCHW, f"aux.{stage + 1}")
            # Beyond the last aux stage every fusion ignores its second input.
            fused_BCHW, rgb_BCHW, aux_BCHW, guides = fusion(rgb_BCHW, aux_BCHW)
            output.maps.append(fused_BCHW)
            if guides is not None:
                output.guides.append(guides)
        return output


def num_aux_stages(fusions: Sequence[Fusion]) -> int:
    """Number of stages of the second stream that some fusion reads, directly or through a later stage.

    Further stages are not built: their parameters would get no gradient, which data-parallel training refuses.
    """
    return max((stage for stage, fusion in enumerate(fusions, 1) if fusion.reads_aux), default=0)


def _each(stages: nn.ModuleList) -> Iterator[Stage]:
    for stage in stages:
        assert isinstance(stage, Stage)
        yield stage
