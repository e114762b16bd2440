"""Two trunks without weight sharing, fused after every stage.

Follows CMX (arXiv 2203.04838): RGB in one stream, everything else in the other, four fused maps for the detector.

Departures from the paper:
1. The fusion is a choice per stage, and so is what enters the next stage (see `fusion.base`).
2. Drop-path rates are per block and equal at equal depth in both streams.
3. Any trunk that comes in stages will do (see `stage`).

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from raydet.models.backbones.stage import STRIDES, Stage
from raydet.models.fusion.base import Fusion, Guides
from raydet.models.init import init_segformer

Init = Literal["segformer", "fusions", "seed"]


class Encoded(NamedTuple):
    """What the encoder makes of a batch."""

    maps: list[Tensor]
    """Fused maps at strides 4, 8, 16, 32."""
    guides: list[Guides]
    """Of the fusions that have losses of their own."""


class DualStreamEncoder(nn.Module):
    """Images of two groups of modalities in, four fused maps out.

    Args:
        rgb_stages: the first stream, four modules of type `Stage`.
        aux_stages: the second stream, `num_aux_stages(fusions)` of them.
        fusions: one per stage.
        init: "segformer" sets the whole encoder as the papers do, "fusions" the fusions only; "seed" leaves all as
            it is (of the fusions, FFM sets itself).
    """

    def __init__(
        self,
        *,
        rgb_stages: nn.ModuleList,
        aux_stages: nn.ModuleList,
        fusions: Sequence[Fusion],
        init: Init = "segformer",
    ) -> None:
        super().__init__()
        assert len(aux_stages) == num_aux_stages(fusions), "a stage would be missing, or never be read"
        self.channels = tuple(
            fusion.fused_channels(stage.channels)
            for stage, fusion in zip(_each(rgb_stages), fusions, strict=True)
        )
        self.strides = STRIDES
        self.rgb_stages = rgb_stages
        self.aux_stages = aux_stages
        self.fusions = nn.ModuleList(fusions)
        if init != "seed":
            (self if init == "segformer" else self.fusions).apply(init_segformer)

    def stages(self) -> Iterator[Stage]:
        """Those of the first stream, then those of the second."""
        yield from _each(self.rgb_stages)
        yield from _each(self.aux_stages)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> Encoded:
        """Inputs are normalised images, at least 32 x 32."""
        rgb_BCHW = rgb_BCHW.contiguous(memory_format=torch.channels_last)
        aux_BCHW = aux_BCHW.contiguous(memory_format=torch.channels_last)
        encoded = Encoded([], [])
        for stage, fusion in enumerate(self.fusions):
            rgb_BCHW = self.rgb_stages[stage](rgb_BCHW)
            if stage < len(self.aux_stages):
                aux_BCHW = self.aux_stages[stage](aux_BCHW)
            # Beyond the last aux stage every fusion ignores its second input.
            fused_BCHW, rgb_BCHW, aux_BCHW, guides = fusion(rgb_BCHW, aux_BCHW)
            encoded.maps.append(fused_BCHW)
            if guides is not None:
                encoded.guides.append(guides)
        return encoded


def num_aux_stages(fusions: Sequence[Fusion]) -> int:
    """Stages of the second stream that a fusion reads, directly or through later ones.

    Further ones are not built: they would hold parameters without a gradient, which wastes memory and which
    data-parallel training refuses.
    """
    return max((stage for stage, fusion in enumerate(fusions, 1) if fusion.reads_aux), default=0)


def _each(stages: nn.ModuleList) -> Iterator[Stage]:
    for stage in stages:
        assert isinstance(stage, Stage)
        yield stage
