"""One image, read once: everything that can be said of it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from raydet.check.alignment import Alignment, compared, outline_field
from raydet.check.boxes import box_findings
from raydet.check.duplicates import difference_hash, pixel_hash
from raydet.check.findings import DEFAULT_TOLERANCE, Finding
from raydet.check.statistics import ChannelSums, channel_sums, image_findings
from raydet.data.sources.base import Source
from raydet.errors import DataError
from raydet.structures import Sample

SIZE_NAMES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a check goes by."""

    classes: tuple[str, ...]
    size_edges: tuple[float, float] = (32.0, 96.0)
    """Sides of squares: an area up to that of the first is small, from that of the second on it is large."""
    edges_are_fractions: bool = False
    """Of the square root of the image's area; else source pixels."""
    min_box_px: float = 2.0
    tolerance: float = DEFAULT_TOLERANCE
    """Displacement up to which two modalities are aligned, as part of the longer side."""
    align: bool = True
    """Estimate alignment: most of the time that a check takes."""
    simulated: tuple[str, ...] = ()
    """Modalities that were made from another one: their alignment and their pixels say nothing."""


@dataclass(slots=True)
class ImageRecord:
    """What is kept of an image; no pixel."""

    index: int
    image_id: str
    size_hw: tuple[int, int]
    findings: list[Finding] = field(default_factory=list)
    is_read: bool = True
    boxes: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Good boxes by label and size."""
    pixel_hashes: dict[str, bytes] = field(default_factory=dict)
    difference_hashes: dict[str, int] = field(default_factory=dict)
    constant: frozenset[str] = frozenset()
    channels: dict[str, ChannelSums] = field(default_factory=dict)
    alignments: list[Alignment] = field(default_factory=list)


def examined(source: Source, index: int, settings: Settings) -> ImageRecord:
    """Read one image and look at everything that it alone can tell."""
    image_id = source.image_ids[index]
    try:
        sample = source.read(index)
    except DataError as error:
        finding = Finding("unreadable", image_id, str(error), index)
        return ImageRecord(index, image_id, (0, 0), [finding], is_read=False)
    record = ImageRecord(index, image_id, sample.source_hw)
    record.channels = {name: channel_sums(x) for name, x in sample.modalities.items()}
    record.constant = frozenset(name for name, sums in record.channels.items() if (sums.constant_C > 0).all())
    # What is simulated is drawn anew for a copy: it would hide that the copy is one.
    record.pixel_hashes = {
        name: pixel_hash(x) for name, x in sample.modalities.items() if name not in settings.simulated
    }
    record.difference_hashes = _difference_hashes(sample)
    record.findings += image_findings(sample, index, record.channels)
    record.findings += box_findings(sample, index, classes=settings.classes, min_box_px=settings.min_box_px)
    if not len(sample.labels):
        record.findings.append(Finding("empty", image_id, "no box", index))
    record.boxes = _counted(sample, settings)
    record.findings += _size_findings(sample, index)
    if settings.align:
        record.alignments = alignments_of(
            sample, settings.tolerance, flat=record.constant | {*settings.simulated}
        )
        told = (_alignment_finding(record, found) for found in record.alignments)
        record.findings += [finding for finding in told if finding is not None]
    return record


def alignments_of(sample: Sample, tolerance: float, *, flat: frozenset[str] = frozenset()) -> list[Alignment]:
    """Of every two modalities of one size that are not flat."""
    shapes = {name: x.shape[-2:] for name, x in sample.modalities.items()}
    fields = {name: outline_field(x) for name, x in sample.modalities.items() if name not in flat}
    return [
        compared(first, second, (fields[first][0], fields[second][0]), fields[first][1], tolerance=tolerance)
        for first, second in combinations(fields, 2)
        if shapes[first] == shapes[second]
    ]


def size_name(area_px: float, image_hw: tuple[int, int], settings: Settings) -> str:
    """small, medium or large.

    >>> size_name(32 * 32, (480, 640), Settings(classes=()))
    'small'
    """
    area = area_px / (image_hw[0] * image_hw[1]) if settings.edges_are_fractions else area_px
    small, large = (edge**2 for edge in settings.size_edges)
    return SIZE_NAMES[(area > small) + (area >= large)]


def _difference_hashes(sample: Sample) -> dict[str, int]:
    """Events are where something moved, not what a place looks like: they count where there is nothing else."""
    names = [name for name in sample.modalities if name != "event"] or list(sample.modalities)
    hashes = {name: difference_hash(sample.modalities[name]) for name in names}
    return {name: value for name, value in hashes.items() if value is not None}


def _counted(sample: Sample, settings: Settings) -> Counter[tuple[int, str]]:
    counts: Counter[tuple[int, str]] = Counter()
    sides_N2 = (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).double().numpy()
    for label, (width, height) in zip(sample.labels.tolist(), sides_N2.tolist(), strict=True):
        if 0 <= label < len(settings.classes) and np.isfinite(width * height) and min(width, height) > 0:
            counts[label, size_name(width * height, sample.source_hw, settings)] += 1
    return counts


def _size_findings(sample: Sample, index: int) -> Iterator[Finding]:
    shapes = {name: tuple(x.shape[-2:]) for name, x in sample.modalities.items()}
    if len(set(shapes.values())) > 1:
        shown = ", ".join(f"{name} {width} x {height}" for name, (height, width) in shapes.items())
        ratios = {round(width / height, 2) for height, width in shapes.values()}
        aspect = "; other aspect ratios, too" if len(ratios) > 1 else ""
        yield Finding("size_mismatch", sample.image_id, f"{shown} (width x height){aspect}", index)


def _alignment_finding(record: ImageRecord, found: Alignment) -> Finding | None:
    pair = f"{found.first}-{found.second}"
    match found.verdict:
        case "misaligned":
            x, y = found.shift_xy
            turned = f", turned by {found.rotation_deg:+.1f} degrees" if found.rotation_deg else ""
            scaled = f", scaled by {found.scale:.2f}" if found.scale != 1 else ""
            detail = (
                f"{pair}: {found.displacement_px:.0f} px (x {x:+.0f}, y {y:+.0f}{turned}{scaled}); "
                f"strength {found.strength:.1f}, in place {found.strength_in_place:.1f}"
            )
            return Finding("misaligned", record.image_id, detail, record.index, badness=found.displacement_px)
        case "cannot_tell":
            detail = f"{pair}: strength {found.strength:.1f}, in place {found.strength_in_place:.1f}"
            return Finding(
                "cannot_tell", record.image_id, detail, record.index, badness=-found.strength_in_place
            )
        case "aligned":
            return None
