"""A model: encoder x neck x head, whatever the task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.fusion.base import Guides
from raydet.models.fusion.guided import guide_losses
from raydet.models.heads.base import Head
from raydet.models.heads.targets import targets_of
from raydet.models.inputs import InputStream
from raydet.models.necks.base import Neck
from raydet.models.sections import Section, sections_of
from raydet.structures import Batch, Carry, HeadOutput, Output, Want


@dataclass(frozen=True, slots=True)
class Units:
    """The parts of a model that `raydet.parallel` recomputes, compiles or shards one by one.

    They do not overlap, and their parameters are used in their own forward pass only.
    """

    blocks: list[nn.Module]
    """Blocks of the backbones, in call order; layers before and after the blocks of a stage are too small to matter."""
    fusions: list[nn.Module]
    rest: list[nn.Module]
    """Neck and head, as far as they have parameters."""


class Model(nn.Module):
    """Two input streams, an encoder with fusions (four maps), a neck (pyramid), a head (losses or predictions)."""

    def __init__(
        self,
        *,
        rgb_input: InputStream,
        aux_input: InputStream,
        encoder: DualStreamEncoder,
        neck: Neck,
        head: Head,
    ) -> None:
        super().__init__()
        self.rgb_input = rgb_input
        self.aux_input = aux_input
        self.encoder = encoder
        self.neck = neck
        self.head = head

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The head's losses, in order; a fusion may add some of its own."""
        return self.head.loss_names

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that both streams read, the first stream's first."""
        return (*self.rgb_input.modalities, *self.aux_input.modalities)

    @contextmanager
    def without(self, modality: str) -> Iterator[None]:
        """Treat a modality as missing while the block runs: exactly 0 after the normalisation."""
        with self.rgb_input.without(modality), self.aux_input.without(modality):
            yield

    def units(self) -> Units:
        """The units of the model; modules without parameters are left out."""
        groups = [group for stage in self.encoder.stages() for group in stage.block_groups()]
        return Units(
            blocks=[block for group in groups for block in group if has_parameters(block)],
            fusions=[fusion for fusion in self.encoder.fusions if has_parameters(fusion)],
            rest=[part for part in (self.neck, self.head) if has_parameters(part)],
        )

    def sections(self) -> list[Section]:
        """Stages of the encoder with names, for plans and counts, in the order of the forward pass."""
        return sections_of(self.encoder)

    def set_progress(self, fraction: float) -> None:
        """See `Head.set_progress`."""
        self.head.set_progress(fraction)

    def forward(self, batch: Batch, carry: Carry | None = None, *, want: Want | None = None) -> Output:
        """The losses of a batch, or the head's predictions; and what the encoder remembers.

        All images pass through the encoder; neck and head see those without labels only for their predictions.

        Args:
            carry: what it remembers of the lanes before the batch; empty: nothing. Without memory it is ignored.
            want: default: losses in training mode, predictions in evaluation mode.

        Raises:
            ConfigError: the model reads a modality that the batch does not have.
        """
        want = want or ("losses" if self.training else "predictions")
        maps, guides, new_carry = self.encoder(
            self.rgb_input(batch), self.aux_input(batch), carry, clip_frames=batch.clip_frames
        )
        if batch.is_labelled is None or batch.is_labelled.all():
            return Output(*self._decode(maps, guides, batch, want), new_carry)
        losses: dict[str, Tensor] = {}
        if want != "predictions":
            # A micro-batch without labels trains as one image that does not count: all workers have every gradient.
            index = batch.is_labelled.nonzero()[:, 0]
            some = index if len(index) else torch.zeros(1, dtype=torch.int64)
            losses, _ = self._decode(
                [_rows(x, some) for x in maps],
                [
                    Guides(_rows(masks, some), None if choice is None else _rows(choice, some))
                    for masks, choice in guides
                ],
                batch.at(some),
                "losses",
            )
            losses = {name: loss if len(index) else 0.0 * loss for name, loss in losses.items()}
        predictions = None if want == "losses" else self._decode(maps, [], batch, "predictions").predictions
        return Output(losses, predictions, new_carry)

    def _decode(
        self, maps: Sequence[Tensor], guides: Sequence[Guides], batch: Batch, want: Want
    ) -> HeadOutput:
        losses: dict[str, Tensor] = {}
        if guides and want != "predictions":
            # Before the head, so that the backward pass runs through them after the head and before the encoder.
            losses = guide_losses(
                guides, targets_of(batch), canvas_hw=batch.canvas_hw, valid_hw_B2=batch.valid_hw
            )
        output: HeadOutput = self.head(self.neck(maps), batch, want=want)
        return HeadOutput({**output.losses, **losses}, output.predictions)


def _rows(x_BCHW: Tensor, index: Tensor) -> Tensor:
    """Some images of a map, channels_last."""
    index = index.to(x_BCHW.device, non_blocking=True)
    return x_BCHW.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def has_parameters(module: nn.Module) -> bool:
    """False for some fusions and for poolings among a stage's layers."""
    return any(True for _ in module.parameters())
