"""The three types that travel through the whole system: `Sample`, `Batch`, `Detections`.

Boxes are (x1, y1, x2, y2) in pixels, x to the right, y down, the origin at the image's top left corner, and a box
covers [x1, x2) x [y1, y2). Labels count from 0; there is no background label outside the detector's head.

Legend: B batch, C channels, H W canvas height and width in pixels, N boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

PADDED_LABEL = -1
"""Label of the rows that fill up a batch's target tensors."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image in every modality that its source has, with its boxes.

    `modalities` maps a name ("rgb", "thermal", "event") to a tensor [C, H, W], uint8 in 0..255 or float32 in 0..1;
    all have the same H and W. A modality that the source lacks is absent.
    """

    image_id: str
    group_id: str
    """The sequence the image comes from: frames of one group never straddle a split."""
    modalities: dict[str, Tensor]
    boxes_xyxy: Tensor
    """float32 [N, 4]."""
    labels: Tensor
    """int64 [N], 0..K-1."""
    source_hw: tuple[int, int]
    """Height and width of the image as it lies in the source."""
    valid_hw: tuple[int, int]
    """The top left part of the tensors that is image; the rest is padding."""
    dropped: frozenset[str] = frozenset()
    """Modalities that training leaves out of this image: fed as a missing one is."""

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width of the tensors."""
        tensor = next(iter(self.modalities.values()))
        return int(tensor.shape[-2]), int(tensor.shape[-1])

    def with_targets(self, boxes_xyxy: Tensor, labels: Tensor) -> Sample:
        """The same image with other boxes."""
        return replace(self, boxes_xyxy=boxes_xyxy, labels=labels)


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one canvas size, stacked; targets are padded to the largest count."""

    modalities: dict[str, Tensor]
    """[B, C, H, W] each, uint8 in 0..255 or float32 in 0..1 (normalised later, on the device)."""
    valid_hw: Tensor
    """int64 [B, 2]: the top left part of the canvas that is image."""
    source_hw: Tensor
    """int64 [B, 2]: size of the image in its source; boxes return there by valid_hw -> source_hw."""
    boxes_xyxy: Tensor
    """float32 [B, N, 4] in canvas pixels; rows from `counts[b]` on are zero."""
    labels: Tensor
    """int64 [B, N]; rows from `counts[b]` on are PADDED_LABEL."""
    counts: Tensor
    """int64 [B]: number of boxes of each sample."""
    image_ids: tuple[str, ...]
    clip_frames: int = 1
    """T: rows are the first frame of every clip, then the second one of every clip, and so on."""
    is_first: Tensor | None = None
    """bool [B / T]: clips that begin their lane's sequence, where a model's memory starts from zero; None: no clips."""
    dropped: dict[str, Tensor] = field(default_factory=dict)
    """bool [B] by modality that is dropped anywhere in the batch: images to which it is fed as a missing one is."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.image_ids)

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width of the stacked tensors."""
        tensor = next(iter(self.modalities.values()))
        return int(tensor.shape[-2]), int(tensor.shape[-1])

    def tensors(self) -> dict[str, Tensor]:
        """All of its tensors by name, those of modalities as `modalities.<name>` and `dropped.<name>`."""
        names = ("valid_hw", "source_hw", "boxes_xyxy", "labels", "counts")
        images = {f"modalities.{name}": x for name, x in self.modalities.items()}
        dropped = {f"dropped.{name}": x for name, x in self.dropped.items()}
        return {**images, **dropped, **{name: getattr(self, name) for name in names}}

    def not_finite(self) -> list[str]:
        """Images with a pixel or a box coordinate that is infinite or not a number."""
        is_finite = torch.isfinite(self.boxes_xyxy).flatten(1).all(dim=1)
        for images in self.modalities.values():
            is_finite &= torch.isfinite(images).flatten(1).all(dim=1)
        return [name for name, good in zip(self.image_ids, is_finite.tolist(), strict=True) if not good]

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._with_tensors(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the DataLoader when it feeds a GPU)."""
        return self._with_tensors(lambda x: x.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            modalities={name: change(x) for name, x in self.modalities.items()},
            valid_hw=change(self.valid_hw),
            source_hw=change(self.source_hw),
            boxes_xyxy=change(self.boxes_xyxy),
            labels=change(self.labels),
            counts=change(self.counts),
            is_first=None if self.is_first is None else change(self.is_first),
            dropped={name: change(x) for name, x in self.dropped.items()},
        )


@dataclass(frozen=True, slots=True)
class Detections:
    """What the detector found in one image, best first."""

    boxes_xyxy: Tensor
    """float32 [N, 4]."""
    scores: Tensor
    """float32 [N] in 0..1."""
    labels: Tensor
    """int64 [N], 0..K-1."""

    def rescaled(self, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Detections:
        """The same detections in an image of another size, e.g. canvas pixels -> source pixels."""
        (from_h, from_w), (to_h, to_w) = from_hw, to_hw
        factors = self.boxes_xyxy.new_tensor([to_w / from_w, to_h / from_h, to_w / from_w, to_h / from_h])
        return replace(self, boxes_xyxy=self.boxes_xyxy * factors)


Carry = dict[str, Tensor]
"""A model's memory by name, one row per lane: [L, ...], detached. Zeros are no memory; empty for models without any."""

Want = Literal["losses", "predictions", "both"]
"""What a model's forward pass has to return."""


class HeadOutput(NamedTuple):
    """What a head returns."""

    losses: dict[str, Tensor]
    """Scalars by name; empty if only predictions were wanted."""
    predictions: Any
    """None if not wanted."""


class Output(NamedTuple):
    """What a model's forward pass returns; a tuple, so that wrappers of parallel training find its tensors."""

    losses: dict[str, Tensor]
    """Scalars by name; empty if only predictions were wanted."""
    predictions: Any
    """What the task's scorer takes, e.g. one `Detections` per image in canvas pixels; None if not wanted."""
    carry: Carry


def collate(
    samples: Sequence[Sample], *, clip_frames: int = 1, is_first: Sequence[bool] | None = None
) -> Batch:
    """Stack samples of one canvas size into a batch.

    Args:
        clip_frames, is_first: see `Batch`.

    Raises:
        ValueError: the samples differ in canvas size, in their modalities or in the type of one (our own mistake, not
            the user's: the letterbox comes first, and sources refuse mixed types).
    """
    names = samples[0].modalities.keys()
    if any(s.modalities.keys() != names or s.canvas_hw != samples[0].canvas_hw for s in samples):
        shapes = [{name: tuple(x.shape) for name, x in s.modalities.items()} for s in samples]
        raise ValueError(f"samples of one batch must have the same modalities and canvas, got {shapes}")
    if any(s.modalities[name].dtype != x.dtype for name, x in samples[0].modalities.items() for s in samples):
        types = [{name: x.dtype for name, x in s.modalities.items()} for s in samples]
        raise ValueError(
            f"samples of one batch must have the same types, got {types}"
        )  # stacking would convert
    counts = torch.tensor([len(s.labels) for s in samples])
    most = max(1, int(counts.max()))
    boxes_xyxy = torch.zeros(len(samples), most, 4)
    labels = torch.full((len(samples), most), PADDED_LABEL)
    for row, sample in enumerate(samples):
        boxes_xyxy[row, : len(sample.labels)] = sample.boxes_xyxy
        labels[row, : len(sample.labels)] = sample.labels
    return Batch(
        # In a loader process this stacks into shared memory at once; a copy of its own would fragment its heap.
        modalities={name: default_collate([s.modalities[name] for s in samples]) for name in names},
        valid_hw=torch.tensor([s.valid_hw for s in samples]),
        source_hw=torch.tensor([s.source_hw for s in samples]),
        boxes_xyxy=boxes_xyxy,
        labels=labels,
        counts=counts,
        image_ids=tuple(s.image_id for s in samples),
        clip_frames=clip_frames,
        is_first=None if is_first is None else torch.tensor(is_first),
        dropped={
            name: torch.tensor([name in s.dropped for s in samples])
            for name in names
            if any(name in s.dropped for s in samples)
        },
    )
