"""Combine the records of all images into the findings and statistics of the set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from raydet.check.alignment import Alignment
from raydet.check.duplicates import duplicate_findings, near_pairs
from raydet.check.examine import SIZE_NAMES, ImageRecord, Settings
from raydet.check.findings import KINDS, SEVERITIES, Finding
from raydet.check.masks import MaskCounts, no_masks
from raydet.check.statistics import ChannelSums, set_findings
from raydet.data.sources.bad_samples import LeftOut

ODD_SHAPE_SHARE = 0.05
"""A shape is odd if at most this share of the images has it, and `PREVAILING_SHARE` have the most common one."""
PREVAILING_SHARE = 0.8
ASPECT_SLACK = 0.1
SIDE_PURPOSES = {
    "train": "train",
    "val": "validate",
    "calibration": "calibrate",
    "both": "train and validate",
}
OFFSET_MIN_PX = 2.0
OFFSET_MIN_PAIRS = 20
OFFSET_SHARE = 0.8
"""The set has an offset if this share of the determined pairs deviates from the median shift by at most half of it."""


ClassRow = TypedDict(
    "ClassRow",
    {"class": str, "small": int, "medium": int, "large": int, "train": int, "val": int, "all": int},
)
"""Number of boxes of a class by size and by side of the split."""


MaskRow = TypedDict(
    "MaskRow",
    {"class": str, "pixels": int, "share": float, "images": int, "train": int, "val": int},
)
"""Number of pixels of a class, its share of all labelled pixels, images that have it, pixels by side of the split."""


class AlignmentRow(TypedDict):
    """How often two modalities are aligned, and their median displacement; None: no pair can be told."""

    pair: str
    aligned: int
    misaligned: int
    cannot_tell: int
    median_x_px: float | None
    median_y_px: float | None


@dataclass(slots=True)
class Gathered:
    """The findings and statistics of a set."""

    num_images: int = 0
    num_unread: int = 0
    classes: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    channels: dict[str, ChannelSums] = field(default_factory=dict)
    boxes: Counter[tuple[int, str]] = field(default_factory=Counter)
    boxes_by_side: Counter[tuple[str, int]] = field(default_factory=Counter)
    images_by_side: Counter[str] = field(default_factory=Counter)
    sizes_hw: Counter[tuple[int, int]] = field(default_factory=Counter)
    masks: MaskCounts | None = None
    """Of sets with masks, over all of them; None: no image has a mask."""
    boxes_per_image: Counter[int] = field(default_factory=Counter)
    alignments: list[tuple[int, str, Alignment]] = field(default_factory=list)
    """Index, image id, estimate."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Images that are left out, and why."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Number of objects that are left out, by rule."""

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def by_kind(self) -> dict[str, list[Finding]]:
        """Findings by kind, errors first; within a kind in the order of the images."""
        ranked = sorted(KINDS, key=lambda kind: SEVERITIES.index(KINDS[kind].severity))
        groups: dict[str, list[Finding]] = {kind: [] for kind in ranked}
        for finding in self.findings:
            groups[finding.kind].append(finding)
        return {kind: found for kind, found in groups.items() if found}

    def class_rows(self) -> list[ClassRow]:
        return [
            {
                "class": name,
                "small": self.boxes[label, "small"],
                "medium": self.boxes[label, "medium"],
                "large": self.boxes[label, "large"],
                "train": self.boxes_by_side["train", label],
                "val": self.boxes_by_side["val", label],
                "all": sum(self.boxes[label, size] for size in SIZE_NAMES),
            }
            for label, name in enumerate(self.classes)
        ]

    def mask_rows(self) -> list[MaskRow]:
        """None of them for sets with boxes."""
        if self.masks is None:
            return []
        counts = self.masks
        none_K = np.zeros(len(self.classes), np.int64)
        train_K, val_K = (counts.by_side.get(side, none_K) for side in ("train", "val"))
        return [
            {
                "class": name,
                "pixels": int(counts.pixels_K[label]),
                "share": round(int(counts.pixels_K[label]) / max(1, counts.labelled), 6),
                "images": int(counts.images_K[label]),
                "train": int(train_K[label]),
                "val": int(val_K[label]),
            }
            for label, name in enumerate(self.classes)
        ]

    def alignment_rows(self) -> list[AlignmentRow]:
        pairs: dict[str, list[Alignment]] = {}
        for _, _, each in self.alignments:
            pairs.setdefault(f"{each.first}-{each.second}", []).append(each)
        rows = []
        for pair, found in pairs.items():
            counts = Counter(each.verdict for each in found)
            shifts = [each.shift_xy for each in found if each.verdict != "cannot_tell"]
            x, y = np.median(shifts, axis=0).round(2).tolist() if shifts else (None, None)
            rows.append(
                AlignmentRow(
                    pair=pair,
                    aligned=counts["aligned"],
                    misaligned=counts["misaligned"],
                    cannot_tell=counts["cannot_tell"],
                    median_x_px=x,
                    median_y_px=y,
                )
            )
        return rows


def gather(
    records: Iterable[ImageRecord],
    *,
    settings: Settings,
    modalities: Sequence[str],
    left_out: Sequence[LeftOut],
    ignored: Mapping[str, int],
    notes: Sequence[str],
    sides: Mapping[int, str] | str,
) -> Gathered:
    """Combine the records of a set.

    Args:
        records: in the order of the source; only the hashes of each are kept.
        ignored: number of objects that are left out, by rule.
        notes: how the set was understood.
        sides: the part of the split or, if validation is on the training images, `both`, by index; or the reason why
            there is no split.
    """
    all_ = Gathered(
        classes=settings.classes,
        modalities=tuple(modalities),
        left_out=[item for item in left_out if item.kind == "image"],
        ignored=ignored,
    )
    for item in left_out:
        kind = "left_out" if item.kind == "image" else "left_out_annotation"
        all_.findings.append(Finding(kind, item.name, item.reason))
    all_.findings += (Finding("ignored", rule, f"objects: {count}") for rule, count in ignored.items())
    all_.findings += (Finding("understood", "the set", note) for note in notes)
    side_of: Mapping[int, str] = {} if isinstance(sides, str) else sides
    if isinstance(sides, str):
        all_.findings.append(Finding("bad_split", "data.split", sides))
    image_ids: list[str] = []
    pixel_hashes: list[dict[str, bytes]] = []
    constant: list[frozenset[str]] = []
    difference_hashes: list[dict[str, int]] = []
    shapes: list[tuple[int, int]] = []
    for record in records:
        _add(all_, record, side_of.get(record.index, "train"))
        image_ids.append(record.image_id)
        pixel_hashes.append(record.pixel_hashes)
        constant.append(record.constant)
        difference_hashes.append(record.difference_hashes)
        shapes.append(record.size_hw)
    duplicates = list(duplicate_findings(pixel_hashes, image_ids, side_of, constant))
    all_.findings += duplicates
    all_.findings += _near_findings(difference_hashes, image_ids, side_of, duplicates)
    all_.findings += _odd_shapes(shapes, image_ids, all_.sizes_hw)
    all_.findings += set_findings(all_.channels)
    all_.findings += _class_findings(all_, has_split=not isinstance(sides, str))
    all_.findings += _offsets(all_)
    return all_


def cause_of(reason: str) -> str:
    """The part of a reason that similar ones share, without file, row and numbers.

    >>> cause_of("/data/a.txt, row 3: a box must have a width and a height above 0, got 0 x 4; delete the box")
    'a box must have a width and a height above 0'
    """
    _, _, message = reason.partition(": ")
    message = re.split(r", got |; ", message or reason)[0]
    return re.sub(r"\S*/\S+", "a file", message).strip()


def _add(all_: Gathered, record: ImageRecord, side: str) -> None:
    all_.num_images += 1
    all_.findings += record.findings
    if not record.is_read:
        all_.num_unread += 1
        return
    sides = ("train", "val") if side == "both" else (side,)
    all_.sizes_hw[record.size_hw] += 1
    all_.boxes.update(record.boxes)
    if record.mask is None:
        all_.boxes_per_image[record.boxes.total()] += 1
    else:
        if record.mask.anomalous and side != "test":
            detail = f"{record.mask.anomalous} pixels, to {SIDE_PURPOSES[side]} on"
            all_.findings.append(Finding("anomaly_outside_test", record.image_id, detail, record.index))
        all_.masks = all_.masks or no_masks(len(all_.classes))
        all_.masks.add(record.mask, sides)
    for each in sides:
        all_.images_by_side[each] += 1
        for (label, _), count in record.boxes.items():
            all_.boxes_by_side[each, label] += count
    all_.alignments += [(record.index, record.image_id, found) for found in record.alignments]
    for name, sums in record.channels.items():
        # Every source checks that the number of channels is the same in all images.
        if name in all_.channels:
            all_.channels[name].add(sums)
        else:
            all_.channels[name] = sums


def _near_findings(
    hashes: Sequence[Mapping[str, int]],
    image_ids: Sequence[str],
    side_of: Mapping[int, str],
    duplicates: Sequence[Finding],
) -> Iterator[Finding]:
    train = [index for index in range(len(hashes)) if side_of.get(index) == "train"]
    val = [index for index in range(len(hashes)) if side_of.get(index) in ("val", "test", "calibration")]
    known = {frozenset((each.index, each.other_index)) for each in duplicates if each.kind == "leak"}
    for pair in near_pairs(hashes, train, val):
        if frozenset((pair.first, pair.second)) not in known:
            name, badness = image_ids[pair.second], -float(pair.bits)
            detail = f"resembles {image_ids[pair.first]} (train); {pair.bits} bits differ"
            yield Finding("near_leak", name, detail, pair.second, pair.first, badness=badness)


def _odd_shapes(
    shapes: Sequence[tuple[int, int]], image_ids: Sequence[str], sizes: Counter[tuple[int, int]]
) -> Iterator[Finding]:
    if not sizes:
        return
    usual, count = sizes.most_common(1)[0]
    total = sizes.total()
    if count < PREVAILING_SHARE * total:
        return
    ratio = usual[1] / usual[0]
    for index, (height, width) in enumerate(shapes):
        is_rare = 0 < sizes[height, width] <= ODD_SHAPE_SHARE * total
        if is_rare and abs(width / height / ratio - 1) > ASPECT_SLACK:
            detail = f"{width} x {height}; {count} of {total} images are {usual[1]} x {usual[0]}"
            yield Finding("odd_shape", image_ids[index], detail, index)


def _class_findings(all_: Gathered, *, has_split: bool) -> Iterator[Finding]:
    if all_.masks is not None:
        yield from _mask_class_findings(all_, has_split=has_split)
        return
    rows = all_.class_rows()
    num_boxes = sum(row["all"] for row in rows)
    if all_.num_images > all_.num_unread and not num_boxes:
        yield Finding("no_boxes", "all images", f"{all_.num_images - all_.num_unread} images, no box")
        return
    for row in rows:
        if not row["all"]:
            yield Finding("class_unused", row["class"], "no box")
        elif has_split and not (row["train"] and row["val"]):
            detail = f"{row['train']} boxes to train on, {row['val']} to validate on"
            yield Finding("class_one_sided", row["class"], detail)


def _mask_class_findings(all_: Gathered, *, has_split: bool) -> Iterator[Finding]:
    assert all_.masks is not None, "the set has masks"
    if not all_.masks.labelled:
        yield Finding("no_labels", "all masks", f"{all_.masks.masks} masks, no labelled pixel")
        return
    for row in all_.mask_rows():
        if not row["pixels"]:
            yield Finding("class_unused", row["class"], "no pixel")
        elif has_split and not (row["train"] and row["val"]):
            detail = f"{row['train']} pixels to train on, {row['val']} to validate on"
            yield Finding("class_one_sided", row["class"], detail)


def _offsets(all_: Gathered) -> Iterator[Finding]:
    """Displacements that most pairs share, and which the rig must have."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for _, _, found in all_.alignments:
        if found.verdict != "cannot_tell":
            pairs.setdefault(f"{found.first}-{found.second}", []).append(found.shift_xy)
    for pair, shifts in pairs.items():
        shifts_N2 = np.array(shifts)
        median = np.median(shifts_N2, axis=0)
        length = float(np.hypot(*median))
        is_shared = np.hypot(*(shifts_N2 - median).T) <= length / 2
        if len(shifts) >= OFFSET_MIN_PAIRS and length >= OFFSET_MIN_PX and is_shared.mean() >= OFFSET_SHARE:
            detail = f"x {median[0]:+.1f}, y {median[1]:+.1f} px in {is_shared.sum()} of {len(shifts)} pairs"
            yield Finding("offset", pair, detail, badness=length)
