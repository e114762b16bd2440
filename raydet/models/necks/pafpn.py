"""Path aggregation network with CSP layers, the neck of YOLOX.

YOLOX: Exceeding YOLO Series in 2021, arXiv 2107.08430; path aggregation: arXiv 1803.01534; cross-stage partial layers
(CSP): arXiv 1911.11929. Written from the papers and from measured behaviour.

Departures from YOLOX:
1. With four levels, the finest map of the encoder joins at the end of the way down.
2. Convolutions and batch norms keep PyTorch's initial weights, eps and momentum, as in RVT.

Legend: B batch, C channels, H W map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydet.models.layout import pointwise
from raydet.models.necks.base import Neck


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, SiLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        is_pointwise = self.conv.kernel_size == (1, 1)
        return F.silu(self.norm(pointwise(self.conv, x_BCHW) if is_pointwise else self.conv(x_BCHW)))


class CSPLayer(nn.Module):
    """Half of the channels through bottlenecks, the other half past them."""

    def __init__(self, in_channels: int, channels: int, *, num_bottlenecks: int) -> None:
        super().__init__()
        half = channels // 2
        self.through = ConvNormAct(in_channels, half, 1)
        self.past = ConvNormAct(in_channels, half, 1)
        self.bottlenecks = nn.Sequential(
            *(
                nn.Sequential(ConvNormAct(half, half, 1), ConvNormAct(half, half, 3))
                for _ in range(num_bottlenecks)
            )
        )
        self.join = ConvNormAct(2 * half, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.join(torch.cat((self.bottlenecks(self.through(x_BCHW)), self.past(x_BCHW)), dim=1))


class PAFPN(Neck):
    """From the coarsest map down to the finest, and up again.

    Args:
        in_channels: of the encoder's maps.
        num_levels: so many maps are read, the last ones; the pyramid has as many.
        depth: a CSP layer has 3 * `depth` bottlenecks, rounded.
    """

    levels_read: range

    def __init__(self, *, in_channels: Sequence[int], num_levels: int, depth: float) -> None:
        super().__init__()
        self.channels = channels = tuple(in_channels[-num_levels:])
        self.levels_read = range(len(in_channels) - num_levels, len(in_channels))
        num_bottlenecks = round(3 * depth)
        steps = list(pairwise(channels))  # (finer, coarser)
        self.reduce = nn.ModuleList(ConvNormAct(coarse, fine, 1) for fine, coarse in steps)
        self.down = nn.ModuleList(
            CSPLayer(2 * fine, fine, num_bottlenecks=num_bottlenecks) for fine, _ in steps
        )
        self.shrink = nn.ModuleList(ConvNormAct(fine, fine, 3, stride=2) for fine, _ in steps)
        self.up = nn.ModuleList(
            CSPLayer(2 * fine, coarse, num_bottlenecks=num_bottlenecks) for fine, coarse in steps
        )

    def forward(self, maps_BCHW: Sequence[Tensor]) -> dict[str, Tensor]:
        """Maps by the number of the encoder's stage, "1" to "4", the finest first."""
        maps_BCHW = [maps_BCHW[level] for level in self.levels_read]
        x_BCHW, reduced = maps_BCHW[-1], []
        for step in reversed(range(len(self.reduce))):
            x_BCHW = self.reduce[step](x_BCHW)
            reduced.append(x_BCHW)
            # Odd maps: the coarse one has a cell more than half.
            grown_BCHW = F.interpolate(x_BCHW, size=maps_BCHW[step].shape[-2:], mode="nearest-exact")
            x_BCHW = self.down[step](torch.cat((grown_BCHW, maps_BCHW[step]), dim=1))
        pyramid = [x_BCHW]
        for step in range(len(self.shrink)):
            x_BCHW = self.up[step](torch.cat((self.shrink[step](x_BCHW), reduced.pop()), dim=1))
            pyramid.append(x_BCHW)
        return {str(level + 1): x for level, x in zip(self.levels_read, pyramid, strict=True)}
