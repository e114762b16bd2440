"""What every loss of logits against masks offers.

Legend: B batch, K channels of the logits, E embedding, h w map of the logits, H W canvas.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class PixelLoss(nn.Module, ABC):
    """Losses of logits against masks."""

    names: tuple[str, ...]
    """Of the losses that it returns, in their order."""
    num_outputs: int
    """Channels of the logits: one per class, then one per group of every level of the class tree, the lowest level
    first."""

    def forward(
        self, logits_BKhw: Tensor, embedding_BEhw: Tensor | None, ids_BHW: Tensor
    ) -> dict[str, Tensor]:
        """Losses by name, already weighted: their sum is what training minimises. fp32 scalars (fp64 for fp64 logits),
        also under autocast.

        They can be differentiated once: gradients of gradients are wrong. A batch without any labelled pixel gives
        exactly 0.

        Args:
            logits_BKhw: at any resolution; they cover the canvas and are upsampled to it bilinearly.
            embedding_BEhw: of any length, at any resolution; only a triplet loss needs it.
            ids_BHW: uint8 or int16, 0..K-1 or `IGNORE`.
        """
        device_type = logits_BKhw.device.type
        with torch.autocast("cpu" if device_type == "meta" else device_type, enabled=False):
            return self.losses(logits_BKhw, embedding_BEhw, ids_BHW)

    @abstractmethod
    def losses(
        self, logits_BKhw: Tensor, embedding_BEhw: Tensor | None, ids_BHW: Tensor
    ) -> dict[str, Tensor]:
        """As `forward`, but without autocast."""

    def set_progress(self, fraction: float) -> None:
        """To be called before every step.

        Args:
            fraction: the part of the run's optimizer steps that is done, 0..1.
        """
