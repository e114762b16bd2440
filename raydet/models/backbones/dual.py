"""Two MiT streams without weight sharing, fused after every stage.

Follows CMX (arXiv 2203.04838): RGB in one stream, everything else in the other, four fused maps for the detector.

Departures from the paper:
1. The fusion is a choice per stage, and so is what enters the next stage (see `fusion.base`).
2. Drop-path rates are per block and equal at equal depth in both streams.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from raydet.models.backbones.mit import STRIDES, MiTVariant, mit_stages
from raydet.models.fusion.base import Fusion, Guides
from raydet.models.init import init_segformer

Init = Literal["segformer", "seed"]


class Encoded(NamedTuple):
    """What the encoder makes of a batch."""

    maps: list[Tensor]
    """Fused maps at strides 4, 8, 16, 32."""
    guides: list[Guides]
    """Of the fusions that have losses of their own."""


class DualStreamEncoder(nn.Module):
    """Pictures of two groups of modalities in, four fused maps out.

    Stages of the second stream that no fusion reads are not built: they would hold parameters without a gradient,
    which wastes memory and which data-parallel training refuses.

    Args:
        variant: sizes of both streams.
        rgb_channels: picture channels of the first stream.
        aux_channels: picture channels of the second stream.
        fusions: one per stage.
        drop_path_rate: rate of the last block.
        init: "segformer" sets the whole encoder as the papers do; "seed" leaves PyTorch's defaults everywhere but
            in FFM, which sets itself.
    """

    def __init__(
        self,
        *,
        variant: MiTVariant,
        rgb_channels: int,
        aux_channels: int,
        fusions: Sequence[Fusion],
        drop_path_rate: float = 0.1,
        init: Init = "segformer",
    ) -> None:
        super().__init__()
        self.channels = tuple(
            fusion.fused_channels(channels)
            for channels, fusion in zip(variant.channels, fusions, strict=True)
        )
        self.strides = STRIDES
        num_aux_stages = max(
            (stage for stage, fusion in enumerate(fusions, 1) if fusion.reads_aux), default=0
        )
        self.rgb_stages = mit_stages(variant=variant, in_channels=rgb_channels, drop_path_rate=drop_path_rate)
        self.aux_stages = mit_stages(
            variant=variant,
            in_channels=aux_channels,
            drop_path_rate=drop_path_rate,
            num_stages=num_aux_stages,
        )
        self.fusions = nn.ModuleList(fusions)
        if init == "segformer":
            self.apply(init_segformer)

    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> Encoded:
        """Inputs are normalised pictures, at least 32 x 32."""
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
