"""The whole detector: from a batch of images as they lie on disk to losses or boxes.

Images travel to the device as uint8 and become floats only here: a quarter of the bytes on the way.

Legend: B batch, C channels, H W canvas in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raydet.errors import ConfigError
from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.fusion.guided import guide_losses
from raydet.models.heads.faster_rcnn import FasterRCNN, Judged
from raydet.models.heads.targets import targets_of
from raydet.models.necks.fpn import FPN
from raydet.structures import Batch, Detections


class InputStream(nn.Module):
    """Stacks the modalities of one stream and normalises them, (x - mean) / std on a 0..1 scale.

    Padding, missing modalities and those that an image has dropped are exactly 0 afterwards.

    Args:
        normalization: means and deviations per channel, by modality, in stacking order; none for a stream that
            nothing reads.
        missing: modalities that the source does not have.
    """

    mean: Tensor
    std: Tensor
    is_present: Tensor

    def __init__(
        self,
        normalization: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        *,
        missing: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.num_channels = {name: len(mean) for name, (mean, _) in normalization.items()}
        self.missing = frozenset(missing)
        means = [value for mean, _ in normalization.values() for value in mean]
        stds = [value for _, std in normalization.values() for value in std]
        present = [
            name not in self.missing for name, count in self.num_channels.items() for _ in range(count)
        ]
        # [C, 1, 1] each. Not persistent: they belong to the config, not to the weights, and so they are real even
        # where the weights are built on the meta device.
        for name, values in (("mean", means), ("std", stds), ("is_present", present)):
            dtype = torch.bool if name == "is_present" else torch.float32
            buffer = torch.tensor(values, dtype=dtype, device="cpu")[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it takes from the images."""
        return tuple(name for name in self.num_channels if name not in self.missing)

    def forward(self, batch: Batch) -> Tensor:
        """float32 [B, C, H, W]."""
        empty = self.mean.new_empty(batch.size, 0, *batch.canvas_hw)
        x_BCHW = torch.cat([empty, *(self._on_unit_scale(batch, name) for name in self.num_channels)], dim=1)
        is_shown_BCHW = valid_mask(batch.valid_hw, batch.canvas_hw) & self.is_present
        if not batch.dropped.keys().isdisjoint(self.num_channels):
            is_shown_BCHW = is_shown_BCHW & self._is_given(batch)
        return torch.where(is_shown_BCHW, (x_BCHW - self.mean) / self.std, 0.0)

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """While the block runs, a modality is as good as missing."""
        before = self.is_present
        is_other = [other != name for other, count in self.num_channels.items() for _ in range(count)]
        self.is_present = before & torch.tensor(is_other, device=before.device)[:, None, None]
        try:
            yield
        finally:
            self.is_present = before

    def _is_given(self, batch: Batch) -> Tensor:
        """bool [B, C, 1, 1]: not dropped."""
        given_B = torch.ones(batch.size, dtype=torch.bool, device=batch.valid_hw.device)
        columns = [
            ~batch.dropped[name] if name in batch.dropped else given_B
            for name, count in self.num_channels.items()
            for _ in range(count)
        ]
        return torch.stack(columns, dim=1)[:, :, None, None]

    def _on_unit_scale(self, batch: Batch, name: str) -> Tensor:
        if name in self.missing:
            return self.mean.new_zeros(batch.size, self.num_channels[name], *batch.canvas_hw)
        if name not in batch.modalities:
            raise ConfigError(
                f"the model reads modality {name!r}, the images have {', '.join(batch.modalities)}; "
                f"add {name!r} to data.missing to feed zeros, or take it out of the model's modalities"
            )
        x_BCHW = batch.modalities[name]
        return x_BCHW.float() / 255 if x_BCHW.dtype == torch.uint8 else x_BCHW


class Detector(nn.Module):
    """Streams, encoder with fusions, pyramid, head.

    Args:
        rgb_input: images of the first stream.
        aux_input: images of the second stream.
        encoder: two streams -> four maps.
        neck: four maps -> pyramid.
        head: pyramid -> losses or detections.
    """

    def __init__(
        self,
        *,
        rgb_input: InputStream,
        aux_input: InputStream,
        encoder: DualStreamEncoder,
        neck: FPN,
        head: FasterRCNN,
    ) -> None:
        super().__init__()
        self.rgb_input = rgb_input
        self.aux_input = aux_input
        self.encoder = encoder
        self.neck = neck
        self.head = head

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it takes from the images, the first stream's first."""
        return (*self.rgb_input.modalities, *self.aux_input.modalities)

    @contextmanager
    def without(self, modality: str) -> Iterator[None]:
        """While the block runs, a modality is as good as missing: exactly 0 after the normalisation."""
        with self.rgb_input.without(modality), self.aux_input.without(modality):
            yield

    def forward(
        self, batch: Batch, *, with_losses: bool = False
    ) -> dict[str, Tensor] | list[Detections] | Judged:
        """Losses by name in training mode, one `Detections` per image (canvas pixels) in evaluation mode.

        The losses are the head's four, and those of the fusions that have any. In evaluation mode `with_losses` gives
        the detections with the losses.

        Raises:
            ConfigError: the model reads a modality that the batch does not have.
        """
        maps, guides = self.encoder(self.rgb_input(batch), self.aux_input(batch))
        losses: dict[str, Tensor] = {}
        if guides and (self.training or with_losses):
            # Before the head's, so that the backward pass meets them between the head's and the encoder's.
            losses = guide_losses(
                guides, targets_of(batch), canvas_hw=batch.canvas_hw, valid_hw_B2=batch.valid_hw
            )
        result: dict[str, Tensor] | list[Detections] | Judged = self.head(
            self.neck(maps), batch, with_losses=with_losses
        )
        match result:
            case dict():
                return {**result, **losses}
            case Judged():
                return Judged(result.detections, {**result.losses, **losses})
            case _:
                return result


def valid_mask(valid_hw: Tensor, canvas_hw: tuple[int, int]) -> Tensor:
    """True where the canvas holds image: bool [B, 1, H, W] from sizes [B, 2].

    >>> valid_mask(torch.tensor([[1, 2]]), (2, 3)).int().tolist()
    [[[[1, 1, 0], [0, 0, 0]]]]
    """
    height, width = canvas_hw
    rows_H1 = torch.arange(height, device=valid_hw.device)[:, None]
    columns_W = torch.arange(width, device=valid_hw.device)
    valid_B211 = valid_hw[:, :, None, None]
    return ((rows_H1 < valid_B211[:, 0]) & (columns_W < valid_B211[:, 1]))[:, None]
