"""Build sources with one image file per modality from their configs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import assert_never

from raydet.config import CocoSource, FlirSource, KaistSource, VocSource, YoloSource
from raydet.data.sources.bad_samples import OnBad
from raydet.data.sources.coco import CocoSet
from raydet.data.sources.flir import FlirSet
from raydet.data.sources.kaist import KaistSet
from raydet.data.sources.paired_images import PairedImages
from raydet.data.sources.voc import VocSet
from raydet.data.sources.yolo import YoloSet


def open_files(
    source: CocoSource | VocSource | YoloSource | FlirSource | KaistSource,
    *,
    classes: Sequence[str] | None,
    missing: Collection[str],
    on_bad: OnBad,
    is_labelled: bool,
) -> PairedImages:
    """A set with one image file per modality; without `classes`, its own."""
    match source:
        case CocoSource():
            return CocoSet(
                source.annotations,
                root=source.root,
                classes=source.classes or classes,
                leaves_out_others=source.classes is not None,
                missing=missing,
                thermal_range=source.thermal_range,
                is_labelled=is_labelled,
                links_into=source.follow_links,
                on_bad=on_bad,
            )
        case VocSource():
            return VocSet(
                source.root,
                classes=classes,
                missing=missing,
                directories=image_directories(source),
                annotations=source.annotations,
                ignore=source.ignore,
                first_pixel=source.first_pixel,
                group_prefix=source.group_prefix,
                thermal_range=source.thermal_range,
                is_labelled=is_labelled,
                links_into=source.follow_links,
                on_bad=on_bad,
            )
        case YoloSource():
            return YoloSet(
                source.root,
                classes=classes or (),
                labels=source.labels,
                missing=missing,
                image_directories=image_directories(source),
                label_directories=named_only(
                    rgb=source.labels_rgb, thermal=source.labels_thermal, fused=source.labels_fused
                ),
                union_iou=source.union_iou,
                group_prefix=source.group_prefix,
                thermal_range=source.thermal_range,
                is_labelled=is_labelled,
                links_into=source.follow_links,
                on_bad=on_bad,
            )
        case FlirSource():
            return FlirSet(
                source.root,
                classes=classes,
                missing=missing,
                subset=source.subset,
                ignore=source.ignore,
                first_pixel=source.first_pixel,
                thermal_range=source.thermal_range,
                is_labelled=is_labelled,
                links_into=source.follow_links,
                on_bad=on_bad,
            )
        case KaistSource():
            return KaistSet(
                source.root,
                classes=classes,
                missing=missing,
                annotations=source.annotations,
                subset=source.subset,
                ignore=source.ignore,
                thermal_range=source.thermal_range,
                is_labelled=is_labelled,
                links_into=source.follow_links,
                on_bad=on_bad,
            )
        case unreachable:
            assert_never(unreachable)


def image_directories(source: VocSource | YoloSource) -> dict[str, str]:
    """The directories that a config names, by modality."""
    return named_only(rgb=source.rgb, thermal=source.thermal, event=source.event)


def named_only(**directories: str | None) -> dict[str, str]:
    """Directories by name, without those that are not named."""
    return {name: directory for name, directory in directories.items() if directory is not None}
