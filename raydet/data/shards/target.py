"""How the two kinds of targets are stored: boxes in the index, masks beside the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from raydet.data.shards.layout import MASK, MASK_TYPES
from raydet.data.shards.manifest import TargetKind
from raydet.errors import DataError
from raydet.structures import ANOMALY, ANY_CLASS, IGNORE, Boxes, Mask, Sample, Target

NOT_LABELLED = -(2**31)
"""Label of the only row, an empty box, of an image in which nobody looked for objects."""


def kind_of(target: Target) -> TargetKind:
    match target:
        case Boxes():
            return "boxes"
        case Mask():
            return "masks"


def stored_parts(target: Target, *, is_labelled: bool = True) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Boxes [N, 4] and labels [N] for the index, and by column what is stored like pixels, [C, H, W].

    Ignored regions follow the objects, with negative labels: -2 - k for class k, and so -1 for `ANY_CLASS`. An image
    that is not labelled has one row, of `NOT_LABELLED`.
    """
    match target:
        case Boxes() if not is_labelled:
            return torch.zeros(1, 4), torch.tensor([NOT_LABELLED]), {}
        case Boxes(boxes_xyxy, labels, ignored_xyxy, ignored_labels):
            return torch.cat([boxes_xyxy, ignored_xyxy]), torch.cat([labels, -2 - ignored_labels]), {}
        case Mask(ids_HW):
            return torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), {MASK: ids_HW[None]}


def restored_boxes(boxes_xyxy: Tensor, labels: Tensor) -> Boxes:
    """What `stored_parts` took apart; nothing for an image that is not labelled."""
    is_object = labels >= 0
    if bool(is_object.all()):
        return Boxes(boxes_xyxy, labels)
    return Boxes(boxes_xyxy[is_object], labels[is_object], boxes_xyxy[~is_object], -2 - labels[~is_object])


def target_bytes(target: Target) -> bytes:
    """Bytes that are equal for equal targets of images of the same size."""
    match target:
        case Boxes():
            boxes_xyxy, labels, _ = stored_parts(target)
            return f"{len(labels)}\n".encode() + boxes_xyxy.numpy().tobytes() + labels.numpy().tobytes()
        case Mask(ids_HW):
            return f"{ids_HW.dtype}\n".encode() + ids_HW.numpy().tobytes()


def are_ids(ids_HW: Tensor, num_classes: int) -> bool:
    """Whether all ids of a mask are of classes, IGNORE or ANOMALY."""
    ids = ids_HW[(ids_HW != IGNORE) & (ids_HW != ANOMALY)]
    return not len(ids) or bool(ids.min() >= 0 and int(ids.max()) < num_classes)


def check_target(sample: Sample, num_classes: int) -> None:
    """Check that a target can be stored.

    Raises:
        DataError: the type, size or range of boxes, labels or mask is wrong.
    """
    match sample.target:
        case Boxes(boxes_xyxy, labels, ignored_xyxy, ignored_labels):
            are_finite = boxes_xyxy.isfinite().all() and ignored_xyxy.isfinite().all()
            if (
                boxes_xyxy.shape != (len(labels), 4)
                or ignored_xyxy.shape != (len(ignored_labels), 4)
                or not are_finite
            ):
                raise DataError(
                    f"{sample.image_id}: boxes must have four finite numbers; correct the annotations"
                )
            if not sample.is_labelled and len(labels) + len(ignored_labels):
                raise DataError(
                    f"{sample.image_id}: expected no boxes in an image that is not labelled, got {len(labels)}; "
                    "correct the source"
                )
            if not bool(((ignored_labels >= ANY_CLASS) & (ignored_labels < num_classes)).all()):
                raise DataError(
                    f"{sample.image_id}: expected labels of ignored regions in {ANY_CLASS}..{num_classes - 1}, got "
                    f"{ignored_labels.tolist()}; correct the annotations"
                )
            if not bool(((labels >= 0) & (labels < num_classes)).all()):
                raise DataError(
                    f"{sample.image_id}: expected labels in 0..{num_classes - 1}, got {labels.tolist()}; correct the "
                    "annotations"
                )
        case Mask(ids_HW):
            height, width = sample.source_hw
            if ids_HW.shape != (height, width) or ids_HW.dtype not in MASK_TYPES.values():
                raise DataError(
                    f"{sample.image_id}: expected a uint8 or int16 mask {height} x {width}, got {ids_HW.dtype} "
                    f"{tuple(ids_HW.shape)}; correct or remove the image"
                )
            if not are_ids(ids_HW, num_classes):
                raise DataError(
                    f"{sample.image_id}: expected ids in 0..{num_classes - 1}, {ANOMALY} (anomaly) or {IGNORE} (no "
                    f"label) in the mask, got {ids_HW.unique().tolist()}; correct the annotations"
                )
