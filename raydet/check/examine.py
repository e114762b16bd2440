"""Check one image on its own, reading it once."""

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
from raydet.check.masks import MaskCounts, mask_counts, mask_findings
from raydet.check.statistics import ChannelSums, channel_sums, image_findings
from raydet.data.shards.target import kind_of
from raydet.data.sources.base import Source
from raydet.errors import DataError
from raydet.structures import Sample, mask_of

SIZE_NAMES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a check."""

    classes: tuple[str, ...]
    size_edges: tuple[float, float] = (32.0, 96.0)
    """Sides of squares: areas up to the first are small, from the second on large."""
    edges_are_fractions: bool = False
    """Whether edges are fractions of the square root of the image's area instead of source pixels."""
    min_box_px: float = 2.0
    tolerance: float = DEFAULT_TOLERANCE
    """Largest displacement of two aligned modalities, as a fraction of the longer side."""
    align: bool = True
    """Whether to estimate alignment, which takes most of a check's time."""
    simulated: tuple[str, ...] = ()
    """Modalities computed from another one: their alignment and their pixel hashes carry no information."""


@dataclass(slots=True)
class ImageRecord:
    """The results of an image, without its pixels."""

    index: int
    image_id: str
    size_hw: tuple[int, int]
    findings: list[Finding] = field(default_factory=list)
    is_read: bool = True
    boxes: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Good boxes by label and size."""
    mask: MaskCounts | None = None
    """Pixels of the mask; None: the image has boxes."""
    pixel_hashes: dict[str, bytes] = field(default_factory=dict)
    difference_hashes: dict[str, int] = field(default_factory=dict)
    constant: frozenset[str] = frozenset()
    channels: dict[str, ChannelSums] = field(default_factory=dict)
    alignments: list[Alignment] = field(default_factory=list)


def examined(source: Source, index: int, settings: Settings) -> ImageRecord:
    """Read and check one image; an unreadable one gives a finding."""
    image_id = source.image_ids[index]
    try:
        sample = source.read(index)
    except DataError as error:
        finding = Finding("unreadable", image_id, str(error), index)
        return ImageRecord(index, image_id, (0, 0), [finding], is_read=False)
    record = ImageRecord(index, image_id, sample.source_hw)
    record.channels = {name: channel_sums(x) for name, x in sample.modalities.items()}
    record.constant = frozenset(name for name, sums in record.channels.items() if (sums.constant_C > 0).all())
    # Simulated events depend on the image id, and so would hide that an image is a copy.
    record.pixel_hashes = {
        name: pixel_hash(x) for name, x in sample.modalities.items() if name not in settings.simulated
    }
    # Events show what moved, not what a place looks like: they are used only if there is nothing else.
    names = [name for name in sample.modalities if name != "event"] or list(sample.modalities)
    hashes = {name: difference_hash(sample.modalities[name]) for name in names}
    record.difference_hashes = {name: value for name, value in hashes.items() if value is not None}
    record.findings += image_findings(sample, index, record.channels)
    if kind_of(sample.target) == "masks":
        record.mask = mask_counts(mask_of(sample.target, image_id).ids_HW.numpy(), len(settings.classes))
        record.findings += mask_findings(record.mask, index, image_id)
    else:
        record.findings += box_findings(
            sample, index, classes=settings.classes, min_box_px=settings.min_box_px
        )
        if not len(sample.labels):
            record.findings.append(Finding("empty", image_id, "no box", index))
        record.boxes = _counted(sample, settings)
    record.findings += _size_findings(sample, index)
    if settings.align:
        excluded = record.constant | {*settings.simulated}
        record.alignments = _alignments(sample, settings.tolerance, excluded)
        record.findings += [
            _alignment_finding(record, found) for found in record.alignments if found.verdict != "aligned"
        ]
    return record


def _alignments(sample: Sample, tolerance: float, excluded: frozenset[str]) -> list[Alignment]:
    """The alignment of every two modalities of the same size."""
    shapes = {name: x.shape[-2:] for name, x in sample.modalities.items()}
    fields = {name: outline_field(x) for name, x in sample.modalities.items() if name not in excluded}
    return [
        compared(first, second, (fields[first][0], fields[second][0]), fields[first][1], tolerance=tolerance)
        for first, second in combinations(fields, 2)
        if shapes[first] == shapes[second]
    ]


def size_name(area_px: float, image_hw: tuple[int, int], settings: Settings) -> str:
    """The size class of a box: small, medium or large.

    >>> size_name(32 * 32, (480, 640), Settings(classes=()))
    'small'
    """
    area = area_px / (image_hw[0] * image_hw[1]) if settings.edges_are_fractions else area_px
    small, large = (edge**2 for edge in settings.size_edges)
    return SIZE_NAMES[(area > small) + (area >= large)]


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
        aspect = "; aspect ratios differ as well" if len(ratios) > 1 else ""
        yield Finding("size_mismatch", sample.image_id, f"{shown} (width x height){aspect}", index)


def _alignment_finding(record: ImageRecord, found: Alignment) -> Finding:
    """The finding for a pair that is misaligned or cannot be compared."""
    pair = f"{found.first}-{found.second}"
    strengths = f"strength {found.strength:.1f}, in place {found.strength_in_place:.1f}"
    if found.verdict == "cannot_tell":
        detail, badness = f"{pair}: {strengths}", -found.strength_in_place
    else:
        x, y = found.shift_xy
        rotated = f", rotated by {found.rotation_deg:+.1f} degrees" if found.rotation_deg else ""
        scaled = f", scaled by {found.scale:.2f}" if found.scale != 1 else ""
        shift = f"{found.displacement_px:.0f} px (x {x:+.0f}, y {y:+.0f}{rotated}{scaled})"
        detail, badness = f"{pair}: {shift}; {strengths}", found.displacement_px
    return Finding(found.verdict, record.image_id, detail, record.index, badness=badness)
