"""The types that travel through the whole system: `Sample`, `Batch`, `Detections`, `LogitMaps`.

Boxes are (x1, y1, x2, y2) in pixels, x to the right, y down, the origin at the image's top left corner, and a box
covers [x1, x2) x [y1, y2). Labels count from 0; there is no background label outside the detector's head.

A target is boxes or a mask. Only `collate`, `raydet.data.geometry` and `raydet.data.shards` tell the two apart.

Legend: B batch, C channels, H W canvas height and width in pixels, N boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from raydet.errors import DataError

PADDED_LABEL = -1
"""Label of the rows that fill up a batch's target tensors."""
ANY_CLASS = -1
"""Label of an ignored region that is ignored for every class."""
IGNORE = 255
"""Id of the pixels of a mask that have no label: padding, and what the annotation leaves open. It is never a class."""
ANOMALY = 254
"""Id of the pixels of a mask that show what no class describes. Only sources have it: in batches these pixels have no
label. Anomaly scores are measured on them."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Objects in an image, and the regions that evaluation ignores.

    A detection in an ignored region (a crowd, an object that cannot be told) is neither right nor wrong. Only sources
    have these regions; augmentation and batches drop them, so training takes them for background.
    """

    boxes_xyxy: Tensor
    """float32 [N, 4]."""
    labels: Tensor
    """int64 [N], 0..K-1."""
    ignored_xyxy: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    """float32 [M, 4]."""
    ignored_labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 [M], 0..K-1 or ANY_CLASS: the class whose detections are ignored there."""


@dataclass(frozen=True, slots=True)
class Mask:
    """The class of every pixel of an image."""

    ids_HW: Tensor
    """uint8 or int16 [H, W], 0..K-1, IGNORE or ANOMALY."""

    def labelled(self) -> Tensor:
        """The ids that a model may learn and be measured by: 0..K-1 or IGNORE, [H, W]."""
        return self.ids_HW.masked_fill(self.ids_HW == ANOMALY, IGNORE)


Target = Boxes | Mask


def boxes_of(target: Target, image_id: str) -> Boxes:
    """The target of an image that must have boxes.

    Raises:
        DataError: it is a mask.
    """
    if isinstance(target, Boxes):
        return target
    raise DataError(f"{image_id}: expected boxes, got a mask; choose a set with boxes, or a task for masks")


def mask_of(target: Target, image_id: str) -> Mask:
    """The target of an image that must have a mask.

    Raises:
        DataError: it is boxes.
    """
    if isinstance(target, Mask):
        return target
    raise DataError(f"{image_id}: expected a mask, got boxes; choose a set with masks, or a task for boxes")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image in every modality that its source has, with its target.

    `modalities` maps a name ("rgb", "thermal", "event") to a tensor [C, H, W], uint8 in 0..255 or float32 in 0..1;
    all have the same H and W. A modality that the source lacks is absent.
    """

    image_id: str
    group_id: str
    """The sequence the image comes from: frames of one group never straddle a split."""
    modalities: dict[str, Tensor]
    target: Target
    source_hw: tuple[int, int]
    """Height and width of the image as it lies in the source."""
    valid_hw: tuple[int, int]
    """The top left part of the tensors that is image; the rest is padding."""
    dropped: frozenset[str] = frozenset()
    """Modalities that training leaves out of this image: fed as a missing one is."""
    is_labelled: bool = True
    """False: nobody has looked for objects here, so that no box means nothing. The target is empty then."""

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width of the tensors."""
        tensor = next(iter(self.modalities.values()))
        return int(tensor.shape[-2]), int(tensor.shape[-1])

    @property
    def boxes_xyxy(self) -> Tensor:
        """float32 [N, 4]; a `DataError` if the target is a mask."""
        return boxes_of(self.target, self.image_id).boxes_xyxy

    @property
    def labels(self) -> Tensor:
        """int64 [N], 0..K-1; a `DataError` if the target is a mask."""
        return boxes_of(self.target, self.image_id).labels


class BoxBatch(NamedTuple):
    """The boxes of a batch, padded to the largest count."""

    boxes_xyxy: Tensor
    """float32 [B, N, 4] in canvas pixels; rows from `counts[b]` on are zero."""
    labels: Tensor
    """int64 [B, N]; rows from `counts[b]` on are PADDED_LABEL."""
    counts: Tensor
    """int64 [B]: number of boxes of each sample."""


class MaskBatch(NamedTuple):
    """The masks of a batch."""

    ids_BHW: Tensor
    """uint8 or int16 [B, H, W], 0..K-1 or IGNORE."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one canvas size, stacked."""

    modalities: dict[str, Tensor]
    """[B, C, H, W] each, uint8 in 0..255 or float32 in 0..1 (normalised later, on the device)."""
    valid_hw: Tensor
    """int64 [B, 2]: the top left part of the canvas that is image."""
    source_hw: Tensor
    """int64 [B, 2]: size of the image in its source; boxes return there by valid_hw -> source_hw."""
    target: BoxBatch | MaskBatch
    image_ids: tuple[str, ...]
    clip_frames: int = 1
    """T: rows are the first frame of every clip, then the second one of every clip, and so on."""
    is_first: Tensor | None = None
    """bool [B / T]: clips that begin their lane's sequence, where a model's memory starts from zero; None: no clips."""
    dropped: dict[str, Tensor] = field(default_factory=dict)
    """bool [B] by modality that is dropped anywhere in the batch: images to which it is fed as a missing one is."""
    is_labelled: Tensor | None = None
    """bool [B]: images whose objects are known, the only ones that losses are of; None: all. It stays on the CPU, so
    that a GPU is not waited for."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.image_ids)

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width of the stacked tensors."""
        tensor = next(iter(self.modalities.values()))
        return int(tensor.shape[-2]), int(tensor.shape[-1])

    @property
    def boxes_xyxy(self) -> Tensor:
        """See `BoxBatch`; a `DataError` if the target is masks."""
        return self._boxes.boxes_xyxy

    @property
    def labels(self) -> Tensor:
        """See `BoxBatch`; a `DataError` if the target is masks."""
        return self._boxes.labels

    @property
    def counts(self) -> Tensor:
        """See `BoxBatch`; a `DataError` if the target is masks."""
        return self._boxes.counts

    @property
    def ids_BHW(self) -> Tensor:  # noqa: N802 -- a tensor, named as in `MaskBatch`
        """See `MaskBatch`; a `DataError` if the target is boxes."""
        if isinstance(self.target, MaskBatch):
            return self.target.ids_BHW
        raise DataError(
            "expected a batch with masks, got boxes; choose a set with masks, or a task for boxes"
        )

    @property
    def _boxes(self) -> BoxBatch:
        if isinstance(self.target, BoxBatch):
            return self.target
        raise DataError(
            "expected a batch with boxes, got masks; choose a set with boxes, or a task for masks"
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of its tensors by name, those of modalities as `modalities.<name>` and `dropped.<name>`."""
        images = {f"modalities.{name}": x for name, x in self.modalities.items()}
        dropped = {f"dropped.{name}": x for name, x in self.dropped.items()}
        sizes = {"valid_hw": self.valid_hw, "source_hw": self.source_hw}
        labelled = {} if self.is_labelled is None else {"is_labelled": self.is_labelled}
        return {**images, **dropped, **sizes, **labelled, **self.target._asdict()}

    def not_finite(self) -> list[str]:
        """Images with a pixel or a box coordinate that is infinite or not a number."""
        is_finite = torch.ones_like(self.valid_hw[:, 0], dtype=torch.bool)
        for tensor in (*self.modalities.values(), *self.target):
            is_finite &= torch.isfinite(tensor).reshape(self.size, -1).all(dim=1)
        return [name for name, good in zip(self.image_ids, is_finite.tolist(), strict=True) if not good]

    def at(self, index: Tensor) -> Batch:
        """Some of its images, as single ones.

        Args:
            index: int64, on the CPU.
        """

        def rows(x: Tensor) -> Tensor:
            return x.index_select(0, index.to(x.device, non_blocking=True))

        single = replace(self, clip_frames=1, is_first=None)
        return replace(
            single._with_tensors(rows),
            image_ids=tuple(self.image_ids[image] for image in index.tolist()),
            is_labelled=None if self.is_labelled is None else self.is_labelled[index],
        )

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
            target=type(self.target)(*map(change, self.target)),
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


class LogitMaps(NamedTuple):
    """What a head for masks predicts for a batch; `raydet.ops.class_tree.decode` makes ids of it."""

    logits_BNHW: Tensor
    """[B, N, h, w] at the head's own stride; the map covers the whole canvas. N: the classes, or the classes and then
    the groups of every level of the class tree."""


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
    """What the task's scorer takes, e.g. one `Detections` per image in canvas pixels, or `LogitMaps`; None if not
    wanted."""
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
        DataError: some samples have boxes and some have masks.
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
    return Batch(
        # In a loader process this stacks into shared memory at once; a copy of its own would fragment its heap.
        modalities={name: default_collate([s.modalities[name] for s in samples]) for name in names},
        valid_hw=torch.tensor([s.valid_hw for s in samples]),
        source_hw=torch.tensor([s.source_hw for s in samples]),
        target=_stacked_targets(samples),
        image_ids=tuple(s.image_id for s in samples),
        clip_frames=clip_frames,
        is_first=None if is_first is None else torch.tensor(is_first),
        dropped={
            name: torch.tensor([name in s.dropped for s in samples])
            for name in names
            if any(name in s.dropped for s in samples)
        },
        is_labelled=None
        if all(s.is_labelled for s in samples)
        else torch.tensor([s.is_labelled for s in samples]),
    )


def _stacked_targets(samples: Sequence[Sample]) -> BoxBatch | MaskBatch:
    match samples[0].target:
        case Boxes():
            counts = torch.tensor([len(s.labels) for s in samples])
            most = max(1, int(counts.max()))
            boxes_xyxy = torch.zeros(len(samples), most, 4)
            labels = torch.full((len(samples), most), PADDED_LABEL)
            for row, sample in enumerate(samples):
                boxes_xyxy[row, : len(sample.labels)] = sample.boxes_xyxy
                labels[row, : len(sample.labels)] = sample.labels
            return BoxBatch(boxes_xyxy, labels, counts)
        case Mask(first_HW):
            ids = [mask_of(s.target, s.image_id).labelled() for s in samples]
            if any(ids_HW.dtype != first_HW.dtype for ids_HW in ids):
                raise ValueError(f"masks of one batch must have the same type, got {[x.dtype for x in ids]}")
            return MaskBatch(default_collate(ids))
