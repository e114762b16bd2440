"""No neck: heads for masks bring a decoder of their own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from raydet.models.necks.base import Neck


class NoNeck(Neck):
    """The encoder's maps as they are, by stage: "1" to "4"."""

    def __init__(self, *, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(in_channels)

    def forward(self, maps_BCHW: Sequence[Tensor]) -> dict[str, Tensor]:
        return {str(stage): map_BCHW for stage, map_BCHW in enumerate(maps_BCHW, 1)}
