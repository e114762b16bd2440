"""What a fusion is, and what flows on after it.

A fusion takes the two streams' maps of one stage and returns the fused map for the detector and the two maps that
enter the next stage. What those are is the *flow*, the same in every arm of a comparison unless it is the factor
under test:

- `rectified`: each stream goes on with its own map, as the fusion corrected it;
- `fused`: both streams go on with the fused map.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

Flow = Literal["rectified", "fused"]


class Guides(NamedTuple):
    """What a fusion believes about the image, to be compared with its boxes; see `fusion.guided`."""

    masks_B2HW: Tensor
    """Where the RGB map shows an object, and where the other one does: logits."""
    choice_B2HW: Tensor | None
    """Which of the two to trust: logits of a softmax."""


class FusionOutput(NamedTuple):
    """Three maps [B, C, H, W], but for `Fusion.fused_channels`."""

    fused: Tensor
    """For the detector."""
    rgb_next: Tensor
    """Enters the next stage of the RGB stream."""
    aux_next: Tensor
    """Enters the next stage of the other stream."""
    guides: Guides | None = None
    """Where the fusion has losses of its own."""

    @property
    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        """All but the guides."""
        return self.fused, self.rgb_next, self.aux_next


class Fusion(nn.Module, ABC):
    """Base of all fusions."""

    reads_aux: ClassVar[bool] = True
    """False: the second input has no influence on the fused map."""

    @abstractmethod
    def forward(self, rgb_BCHW: Tensor, aux_BCHW: Tensor) -> FusionOutput:
        """Fuse two maps of one shape."""

    def fused_channels(self, channels: int) -> int:
        """Channels of the fused map, by those of one input."""
        return channels


def route(flow: Flow, *, fused: Tensor, rgb_rectified: Tensor, aux_rectified: Tensor) -> FusionOutput:
    """Apply a flow policy."""
    match flow:
        case "rectified":
            return FusionOutput(fused, rgb_rectified, aux_rectified)
        case "fused":
            return FusionOutput(fused, fused, fused)
