"""`check.json`: all results of a check, machine-readable.

    format            1
    source            the source's config as in config.json
    images          {"seen", "unread", "left_out", "train", "val"}
    modalities        names
    counts            {"error", "warning", "note"}: number of findings
    findings          one object per kind, errors first:
                      {"kind", "severity", "title", "remedy", "count",
                       "items": [{"name", "detail", "index", "other_index", "boxes"}]}, all of them, in source order
    causes            why images were left out: {cause: count}
    ignored           objects that are left out by a rule of the format or a setting: {rule: count}
    classes           [{"class", "small", "medium", "large", "train", "val", "all"}]: number of boxes
                      of sets with masks: [{"class", "pixels", "share", "images", "train", "val"}], share of the
                      labelled pixels, train and val in pixels
    masks             {"masks", "labelled", "unlabelled", "anomalous", "isolated", "border"}: pixels; null: the set has
                      boxes
    size_edges        {"unit": "px" or "fraction", "edges": [end of small, start of large]}
    boxes_per_image   {number of boxes: images}
    image_sizes       {"640 x 480": images}, width x height
    channels          {modality: [{"channel", "mean", "std", "min", "max", "share_zero", "share_full"}]}, 0..1
    alignment         {"tolerance": fraction of the longer side,
                       "pairs": [{"pair", "aligned", "misaligned", "cannot_tell", "median_x_px", "median_y_px"}],
                       "images": [{"index", "name", "first", "second", "verdict", "shift_xy", "rotation_deg",
                       "scale", "displacement_px", "strength", "strength_in_place"}]}

Names are those of the source. The file contains no time and no output path: equal sets give equal files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from raydet.check.examine import Settings
from raydet.check.findings import KINDS, SEVERITIES
from raydet.check.gather import Gathered, cause_of


def as_json(found: Gathered, settings: Settings, source: Mapping[str, object]) -> dict[str, object]:
    """The content of check.json, as described above."""
    return {
        "format": 1,
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
        "findings": [
            {
                "kind": kind,
                **asdict(KINDS[kind]),
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
            for kind, items in found.by_kind().items()
        ],
        "causes": dict(Counter(cause_of(item.reason) for item in found.left_out).most_common()),
        "ignored": dict(found.ignored),
        "classes": found.class_rows() if found.masks is None else found.mask_rows(),
        "masks": found.masks
        and {
            "masks": found.masks.masks,
            "labelled": found.masks.labelled,
            "unlabelled": found.masks.unlabelled,
            "anomalous": found.masks.anomalous,
            "isolated": found.masks.isolated,
            "border": found.masks.border,
        },
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
