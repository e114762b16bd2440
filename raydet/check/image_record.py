"""`check.json`: everything that a check has found, for programs.

    format            1
    source            the source's config, as in config.json
    images          {"seen", "unread", "left_out", "train", "val"}
    modalities        names
    counts            {"error", "warning", "note"}: number of findings
    findings          one object per kind, errors first:
                      {"kind", "severity", "title", "remedy", "count",
                       "items": [{"name", "detail", "index", "other_index", "boxes"}]}, all of them, in source order
    causes            what images were left out for, with counts: {cause: count}
    classes           [{"class", "small", "medium", "large", "train", "val", "all"}]: boxes
    size_edges        {"unit": "px" or "fraction", "edges": [small ends, large begins]}
    boxes_per_image {number of boxes: images}
    image_sizes     {"640 x 480": images}, width x height
    channels          {modality: [{"channel", "mean", "std", "min", "max", "share_zero", "share_full"}]}, 0..1
    alignment         {"tolerance": part of the longer side,
                       "pairs": [{"pair", "aligned", "misaligned", "cannot_tell", "median_x_px", "median_y_px"}],
                       "images": [{"index", "name", "first", "second", "verdict", "shift_xy", "rotation_deg",
                       "scale", "displacement_px", "strength", "strength_in_place"}]}

Names are as the source has them. There is no time and no path of the output in it: equal sets give equal files.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from raydet.check.examine import Settings
from raydet.check.findings import KINDS, SEVERITIES, Finding
from raydet.check.gather import Gathered, cause_of

FORMAT = 1


def as_json(found: Gathered, settings: Settings, source: dict[str, Any]) -> dict[str, Any]:
    """The content of check.json; see the head of this file."""
    return {
        "format": FORMAT,
        "source": source,
        "images": {
            "seen": found.num_images,
            "unread": found.num_unread,
            "left_out": len(found.left_out),
            "train": found.images_by_side["train"],
            "val": found.images_by_side["val"],
        },
        "modalities": list(found.modalities),
        "counts": {severity: found.count(severity) for severity in SEVERITIES},
        "findings": [_kind(kind, items) for kind, items in found.by_kind().items()],
        "causes": dict(Counter(cause_of(item.reason) for item in found.left_out).most_common()),
        "classes": found.class_rows(),
        "size_edges": {
            "unit": "fraction" if settings.edges_are_fractions else "px",
            "edges": list(settings.size_edges),
        },
        "boxes_per_image": {str(number): count for number, count in sorted(found.boxes_per_image.items())},
        "image_sizes": {f"{w} x {h}": count for (h, w), count in found.sizes_hw.most_common()},
        "channels": {name: sums.rows() for name, sums in found.channels.items()},
        "alignment": {
            "tolerance": settings.tolerance,
            "pairs": found.alignment_rows(),
            "images": [
                {"index": index, "name": name, **asdict(estimate)}
                for index, name, estimate in found.alignments
            ],
        },
    }


def _kind(kind: str, items: list[Finding]) -> dict[str, Any]:
    about = KINDS[kind]
    return {
        "kind": kind,
        "severity": about.severity,
        "title": about.title,
        "remedy": about.remedy,
        "count": len(items),
        "items": [
            {
                "name": item.name,
                "detail": item.detail,
                "index": item.index,
                "other_index": item.other_index,
                "boxes": list(item.boxes),
            }
            for item in items
        ],
    }
