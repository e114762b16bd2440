"""What every head offers, whatever the task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from torch import Tensor, nn

from raydet.errors import ConfigError
from raydet.structures import Batch, HeadOutput, Want

DeviceType = Literal["cuda", "cpu"]
TARGETS = "logits and targets"
"""The plan's row for what a head computes without a graph."""


class Head(nn.Module, ABC):
    """From the pyramid of a neck to losses and predictions."""

    loss_names: tuple[str, ...]
    """Its losses in the order of the columns of metrics_per_batch.csv."""
    last_row = "losses"
    """The plan's row for what runs last in its forward pass."""
    least_images = 1
    """Images that a micro-batch must have in training."""
    levels_read: Collection[int] | None = None
    """Indices of the encoder's maps that it reads, where there is no neck; None: all, or those that the neck reads."""

    @abstractmethod
    def forward(self, pyramid: Mapping[str, Tensor], batch: Batch, *, want: Want) -> HeadOutput:
        """Losses, predictions, or both.

        Args:
            pyramid: maps [B, C, H, W] by level, the finest first.
        """

    def set_progress(self, fraction: float) -> None:
        """Called before every optimizer step, for losses with a schedule.

        Args:
            fraction: of the run's steps that are done, 0..1.
        """

    def outline(self, device_type: DeviceType, enter: Callable[[str], None]) -> Head:
        """A head that takes as much memory for its losses and looks at no value: it runs on tensors without memory.

        Args:
            device_type: whose kernels it uses.
            enter: to be called with the plan's row of what comes next, `last_row` at the end.
        """
        self.register_forward_pre_hook(lambda *_: enter(self.last_row))
        return self

    @abstractmethod
    def parts(self, pyramid: Mapping[str, Tensor]) -> Mapping[str, Callable[[], object]]:
        """What an evaluation pass computes, by name, for counting operations on tensors without memory."""


def check_micro_batch(micro_batch: int, *, least: int) -> None:
    """Refuse a micro-batch that a head cannot be trained with.

    Args:
        least: see `Head.least_images`.

    Raises:
        ConfigError: it has fewer images.
    """
    if micro_batch < least:
        raise ConfigError(
            f"expected a micro-batch of at least {least} images, as a batch norm of the head sees each pooled to one "
            f"cell, got {micro_batch}; set train.micro_batch or train.global_batch, or train.sync_batch_norm=true with "
            "several workers, or take a head that pools no images, such as segformer"
        )
