"""What every head for masks is made of: a decoder, a projection, an auxiliary head, a loss.

The decoder turns the four maps of the encoder into logits. The projection embeds the last map for losses that compare
pixels (as SegHiero has it). The auxiliary head is a small FCN on the third map whose cross-entropy helps the backbone
in training (PSPNet, arXiv 1612.01105; its layers are torchvision's, BSD-3-Clause, imported).

Departures from SegHiero:
1. The auxiliary head ends in its classifier. SegHiero's has a batch norm and a ReLU behind it, so that no logit can be
   negative.
2. A projection that no loss reads keeps its initial weights and is not computed: it would get no gradient.

Legend: B batch, C channels, H W map or canvas, h w the decoder's map, N outputs, E embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from raydet.models.heads.base import DeviceType, Head, check_micro_batch
from raydet.models.heads.masks.layers import conv_norm
from raydet.models.heads.targets import full_precision
from raydet.models.layout import without_autocast
from raydet.models.losses.base import PixelLoss
from raydet.structures import Batch, HeadOutput, LogitMaps, Want

DECODER = "decoder"
AUXILIARY_LOSS = "loss_auxiliary"
THIRD, LAST = 2, 3


class Decoder(nn.Module, ABC):
    """From four maps to the logits of every class (and every group of a class tree)."""

    levels: tuple[int, ...] = (0, 1, 2, 3)
    """Indices of the maps that it reads."""

    @property
    def pooled_norm(self) -> nn.Module | None:
        """A batch norm of whole images, each pooled to one cell: it has no statistics of a single image."""
        return None

    @abstractmethod
    def forward(self, maps_BCHW: Sequence[Tensor]) -> Tensor:
        """Logits [B, N, h, w], at the size of one of the maps.

        Args:
            maps_BCHW: the encoder's four maps, the finest first.
        """


class Projection(nn.Sequential):
    """[B, C, H, W] -> embedding [B, E, H, W], float32 (float64 for float64 maps), of unit length in every cell."""

    def __init__(self, in_channels: int, embedding: int) -> None:
        super().__init__(
            *conv_norm(in_channels, in_channels), nn.Conv2d(in_channels, embedding, 1, bias=False)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BEHW = super().forward(x_BCHW)
        with without_autocast(x_BEHW.device):
            return F.normalize(full_precision(x_BEHW), dim=1)


class Auxiliary(nn.Module):
    """A small FCN on the third map and its weighted loss, for training only."""

    def __init__(self, in_channels: int, *, loss: PixelLoss, weight: float) -> None:
        super().__init__()
        self.layers = FCNHead(in_channels, loss.num_outputs)
        self.loss = loss
        self.weight = weight

    def forward(self, x_BCHW: Tensor, ids_BHW: Tensor) -> Tensor:
        """The loss of a map [B, C, H, W]: a scalar."""
        losses = self.loss(self.layers(x_BCHW), None, ids_BHW)
        return self.weight * torch.stack(list(losses.values())).sum()


class SegmentationHead(Head):
    """A decoder and what trains it.

    Args:
        decoder: with as many outputs as the loss has.
        loss: of the logits.
        projection: gives the embedding; None: the loss gets none.
        trains_projection: the loss reads the embedding.
        auxiliary: None: there is no auxiliary loss.
    """

    last_row = "losses"

    def __init__(
        self,
        *,
        decoder: Decoder,
        loss: PixelLoss,
        projection: Projection | None = None,
        trains_projection: bool = True,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.loss = loss
        self.projection = projection
        self.trains_projection = trains_projection
        self.auxiliary = auxiliary
        self.loss_names = loss.names
        self.levels_read = {*decoder.levels}
        if projection is not None:
            projection.requires_grad_(trains_projection)
            self.levels_read |= {LAST} if trains_projection else set()
        if auxiliary is not None:
            self.loss_names = (*loss.names, AUXILIARY_LOSS)
            self.levels_read.add(THIRD)

    @property
    def least_images(self) -> int:  # type: ignore[override]
        """See `Head`: two if a batch norm sees whole images, unless it sees those of all workers."""
        return 2 if type(self.decoder.pooled_norm) is nn.BatchNorm2d else 1

    def forward(self, pyramid: Mapping[str, Tensor], batch: Batch, *, want: Want) -> HeadOutput:
        """The losses, and `LogitMaps` at the decoder's size. The auxiliary loss is there in training only.

        Raises:
            ConfigError: one image, where a batch norm of the decoder needs two.
        """
        if self.training:
            check_micro_batch(batch.size, least=self.least_images)
        maps_BCHW = list(pyramid.values())
        logits_BNhw = self.decoder(maps_BCHW)
        losses: dict[str, Tensor] = {}
        if want != "predictions":
            embedding_BEHW = None
            if self.projection is not None and self.trains_projection:
                embedding_BEHW = self.projection(maps_BCHW[LAST])
            losses = self.loss(logits_BNhw, embedding_BEHW, batch.ids_BHW)
            if self.auxiliary is not None and self.training:
                losses = {**losses, AUXILIARY_LOSS: self.auxiliary(maps_BCHW[THIRD], batch.ids_BHW)}
        return HeadOutput(losses, None if want == "losses" else LogitMaps(logits_BNhw.float()))

    def set_progress(self, fraction: float) -> None:
        """Tell the loss which part of the run's steps is done, 0..1: its weights may follow a schedule."""
        self.loss.set_progress(fraction)

    def outline(self, device_type: DeviceType, enter: Callable[[str], None]) -> Head:
        """See `Head`: this head looks at no value, so it is its own outline."""
        self.decoder.register_forward_pre_hook(lambda *_: enter(DECODER))
        self.decoder.register_forward_hook(lambda *_: enter(self.last_row))
        return self

    def parts(self, pyramid: Mapping[str, Tensor]) -> Mapping[str, Callable[[], object]]:
        """The decoder."""
        return {DECODER: lambda: self.decoder(list(pyramid.values()))}
