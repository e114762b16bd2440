"""Every kind of finding, with its severity and its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
DEFAULT_TOLERANCE = 0.0125
"""Largest displacement of aligned modalities, as a fraction of the longer side: 5 px of the 400 at which alignment is
estimated. The largest certain displacement of a true pair of MSRS, RoadScene and LLVIP is 0.0114."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding."""

    severity: Severity
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    "left_out": Kind(
        "error",
        "images that cannot be used",
        "the reason names file and field; fix them, or leave the images out deliberately",
    ),
    "left_out_annotation": Kind(
        "error", "annotations that belong to no image", "correct the image they name, or add it"
    ),
    "unreadable": Kind("error", "images that cannot be decoded", "copy the files again, or leave them out"),
    "not_finite": Kind(
        "error", "pixels that are infinite or not a number", "repair the array, or leave the image out"
    ),
    "out_of_range": Kind(
        "error", "float pixels outside 0..1", "scale the values to the range that the format names"
    ),
    "size_mismatch": Kind(
        "error",
        "modalities of different sizes",
        "resize or crop one modality to the other, together with its boxes",
    ),
    "misaligned": Kind(
        "error",
        "modalities that are not aligned",
        "look at the checkerboard; register the pair again, or leave it out",
    ),
    "box_not_finite": Kind("error", "boxes with infinite coordinates or NaN", "correct or delete the box"),
    "box_empty": Kind("error", "boxes without width or height", "correct or delete the box"),
    "box_outside": Kind(
        "error", "boxes that leave the image", "clip the box, or check that it belongs to this image"
    ),
    "unknown_class": Kind(
        "error", "labels without a class", "correct the label, or name all classes in data.classes"
    ),
    "no_boxes": Kind("error", "no image has a box", "check that the labels belong to these images"),
    "no_labels": Kind(
        "error",
        "no mask has a labelled pixel",
        "check classes.yaml, and that the masks belong to these images",
    ),
    "dead_channel": Kind(
        "error",
        "channels that hold one value in every image",
        "check the export; list a modality that does not exist in data.missing",
    ),
    "bad_split": Kind("error", "the split leaves a side empty", "change data.split, or add images"),
    "leak": Kind(
        "error",
        "the same image on both sides of the split",
        "delete one of the two, or give both the same group",
    ),
    "near_leak": Kind(
        "warning",
        "validation images that nearly equal a training image",
        "give frames of one sequence the same group (data.split.kind=group), or leave one of the two out",
    ),
    "duplicate": Kind("warning", "the same image twice", "delete one of the two"),
    "shared_file": Kind(
        "warning",
        "images with the same pixels in one modality only",
        "one of the two is paired wrongly: compare the file names",
    ),
    "box_twice": Kind("warning", "an object that is labelled twice", "delete one of the boxes"),
    "box_two_classes": Kind("warning", "an object with two classes", "delete the wrong one of the boxes"),
    "constant": Kind("warning", "modalities that hold one value", "leave the image out, or record it again"),
    "saturated": Kind(
        "warning",
        "modalities with most pixels at full scale",
        "check exposure, or the scaling of 16-bit values",
    ),
    "class_unused": Kind("warning", "classes that never occur", "check the labels, or remove the class"),
    "anomaly_outside_test": Kind(
        "warning",
        "anomalies outside the test images",
        "a model must not know them: training gives these pixels no label, but sees them; move the images to the test "
        "part",
    ),
    "mask_speckled": Kind(
        "warning",
        "masks with isolated pixels",
        "were the masks resized with interpolation, or stored with loss? Export them again, with the nearest value",
    ),
    "class_one_sided": Kind(
        "warning",
        "classes on one side of the split only",
        "change data.split, so that every class is on both sides",
    ),
    "offset": Kind(
        "warning", "the same displacement in most pairs", "calibrate the rig, or shift one modality by it"
    ),
    "cannot_tell": Kind(
        "note",
        "pairs whose alignment cannot be determined",
        "their outlines have too little in common; look at a few: dark or blank images, or different scenes",
    ),
    "ignored": Kind(
        "note",
        "rules that leave objects out",
        "training takes these for background; in evaluation, detections on crowds and on what the annotator could not "
        "tell do not count",
    ),
    "understood": Kind("note", "how the set was interpreted", "check that it is right"),
    "empty": Kind(
        "note", "images without a box", "fine as background; check that their labels are not missing"
    ),
    "mask_empty": Kind(
        "note", "masks without a label", "training learns nothing from them; check that it is right"
    ),
    "box_tiny": Kind(
        "note",
        "boxes narrower than data.augmentation.min_box_px",
        "training drops them after scaling; nothing to do",
    ),
    "odd_shape": Kind(
        "note",
        "images with an unusual aspect ratio",
        "check that they are not rotated or cropped",
    ),
    "no_events": Kind("note", "event images without an event", "nothing moved; nothing to do"),
    "grey_rgb": Kind(
        "note",
        "RGB whose channels are equal everywhere",
        "the set may contain grey images instead of colour",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and where it is."""

    kind: str
    name: str
    """The image's id; for findings about the whole set a class, a channel or a pair of modalities."""
    detail: str
    index: int | None = None
    """Index of the image in the source."""
    other_index: int | None = None
    """Index of the second image, if there is one."""
    boxes: tuple[int, ...] = ()
    """Indices of the boxes concerned."""
    badness: float = 0.0
    """Larger is worse; comparable within one kind only."""

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind].severity
