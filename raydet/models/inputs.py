"""The input of an encoder: images of several modalities as one normalised tensor.

Images are sent to the device as uint8, a quarter of the bytes, and converted to floats here.

Legend: B batch, C channels, H W canvas in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raydet.errors import ConfigError
from raydet.structures import Batch


class InputStream(nn.Module):
    """Stacks the modalities of one stream and normalises them, (x - mean) / std on a 0..1 scale.

    Padding and missing or dropped modalities are exactly 0 afterwards.

    Args:
        normalization: means and deviations per channel, by modality, in stacking order; empty for a stream that
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
        self._modality_of_channel = [name for name, count in self.num_channels.items() for _ in range(count)]
        means = [value for mean, _ in normalization.values() for value in mean]
        stds = [value for _, std in normalization.values() for value in std]
        present = [name not in self.missing for name in self._modality_of_channel]
        # [C, 1, 1] each. Not persistent: they belong to the config, not to the weights. On the CPU even if the weights
        # are built on the meta device.
        for name, values in (("mean", means), ("std", stds), ("is_present", present)):
            dtype = torch.bool if name == "is_present" else torch.float32
            buffer = torch.tensor(values, dtype=dtype, device="cpu")[:, None, None]
            self.register_buffer(name, buffer, persistent=False)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that it reads."""
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
        """Treat a modality as missing while the block runs."""
        before = self.is_present
        is_other = [other != name for other in self._modality_of_channel]
        self.is_present = before & before.new_tensor(is_other)[:, None, None]
        try:
            yield
        finally:
            self.is_present = before

    def _is_given(self, batch: Batch) -> Tensor:
        """bool [B, C, 1, 1], False where a modality is dropped."""
        given_B = torch.ones(batch.size, dtype=torch.bool, device=batch.valid_hw.device)
        columns = [
            ~batch.dropped[name] if name in batch.dropped else given_B for name in self._modality_of_channel
        ]
        return torch.stack(columns, dim=1)[:, :, None, None]

    def _on_unit_scale(self, batch: Batch, name: str) -> Tensor:
        if name in self.missing:
            return self.mean.new_zeros(batch.size, self.num_channels[name], *batch.canvas_hw)
        if name not in batch.modalities:
            raise ConfigError(
                f"the model reads modality {name!r}, the images have {', '.join(batch.modalities)}; "
                f"add {name!r} to data.missing to feed zeros, or remove it from the model's modalities"
            )
        x_BCHW = batch.modalities[name]
        if x_BCHW.shape[1] != self.num_channels[name]:
            raise ConfigError(
                f"the model reads {self.num_channels[name]} channel(s) of modality {name!r}, the images have "
                f"{x_BCHW.shape[1]}"
                + (f"; set data.event_channels={x_BCHW.shape[1]}" if name == "event" else "")
            )
        return x_BCHW.float() / 255 if x_BCHW.dtype == torch.uint8 else x_BCHW


def valid_mask(valid_hw: Tensor, canvas_hw: tuple[int, int]) -> Tensor:
    """bool [B, 1, H, W], True inside the images, from their sizes [B, 2].

    >>> valid_mask(torch.tensor([[1, 2]]), (2, 3)).int().tolist()
    [[[[1, 1, 0], [0, 0, 0]]]]
    """
    height, width = canvas_hw
    rows_H1 = torch.arange(height, device=valid_hw.device)[:, None]
    columns_W = torch.arange(width, device=valid_hw.device)
    valid_B211 = valid_hw[:, :, None, None]
    return ((rows_H1 < valid_B211[:, 0]) & (columns_W < valid_B211[:, 1]))[:, None]
