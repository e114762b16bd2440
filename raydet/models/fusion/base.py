"""The interface of a fusion, and the maps that continue after it.

A fusion takes the two streams' maps of one stage and returns the fused map for the detector and the two maps that
enter the next stage. The *flow* decides which; it is the same in every arm of a comparison unless it is the factor
under test:

- `rectified`: each stream continues with its own map, as corrected by the fusion;
- `fused`: both streams continue with the fused map.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

Flow = Literal["rectified", "fused"]


class Guides(NamedTuple):
    """Outputs of a fusion that are trained against the boxes; see `fusion.guided`."""

    masks_B2HW: Tensor
    """Logits of where the RGB map, and where the other one, shows an object."""
    choice_B2HW: Tensor | None
    """Logits of a softmax over the two modalities."""


class FusionOutput(NamedTuple):
    """The map for the detector, [B, `Fusion.fused_channels`, H, W], and the inputs [B, C, H, W] of the next stage."""

    fused: Tensor
    rgb_next: Tensor
    aux_next: Tensor
    guides: Guides | None = None
    """Set by fusions that have losses of their own."""

    @property
    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.fused, self.rgb_next, self.aux_next


class Fusion(nn.Module, ABC):
    reads_aux: ClassVar[bool] = True
    """False: the second input has no influence on the fused map."""

    @abstractmethod
    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        """Fuse two maps of one shape."""

    def fused_channels(self, channels: int) -> int:
        """Channels of the fused map for inputs of `channels` channels."""
        return channels


def route(flow: Flow, *, fused: Tensor, rgb_rectified: Tensor, aux_rectified: Tensor) -> FusionOutput:
    match flow:
        case "rectified":
            return FusionOutput(fused, rgb_rectified, aux_rectified)
        case "fused":
            return FusionOutput(fused, fused, fused)
