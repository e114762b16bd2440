"""Data sets whose annotations name the classes of their objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raydet.data.sources.bad_samples import BadSamples
from raydet.data.sources.boxes import Box, Ignored, checked_box, ignored_region
from raydet.data.sources.images import ThermalRange, check_sizes
from raydet.data.sources.paired_images import Image, PairedImages
from raydet.data.sources.yolo_rows import read_class_names
from raydet.errors import DataError
from raydet.files.text import checked_name, one_line

SLACK_PX = 1.0
"""How far a box may leave the image: these formats hold whole pixels, and tools differ on whether the first is 0."""


@dataclass(frozen=True, slots=True)
class NamedBox:
    """An object before its class name is mapped to a label."""

    name: str
    xyxy: Box
    """In pixels, unchecked."""
    where: str
    """File and object, for errors."""
    is_ignored: bool = False
    """Flagged by the annotation as one that cannot be told."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """The content of one image's annotation file."""

    objects: Sequence[NamedBox]
    declared_hw: tuple[int, int] | None = None


class NamedSet(PairedImages):
    """The images of a set whose annotations name the classes.

    Args:
        files: by the image's id, then by modality; the annotation under "annotation", none in a set without labels.
        root: directory of the set.
        read: reads an annotation file.
        group_of: maps an image's id to its sequence.
        ignore: names of objects that are left out.
        ignores_regions: detections on ignored objects are neither right nor wrong; otherwise they are wrong.
        classes: names in label order; default: the lines of `classes.txt` in the root, or else all names in the
            annotations, sorted.

    Raises:
        DataError: a file is bad, or an object has another class, and bad samples are not skipped.
    """

    def __init__(
        self,
        files: Mapping[str, Mapping[str, Path]],
        *,
        root: Path,
        modalities: Sequence[str],
        read: Callable[[Path], Annotation],
        group_of: Callable[[str], str],
        ignore: Collection[str],
        ignores_regions: bool = False,
        classes: Sequence[str] | None,
        thermal_range: ThermalRange | None,
        bad_samples: BadSamples,
    ) -> None:
        def read_annotation(key: str) -> tuple[str, Annotation]:
            if "annotation" not in files[key]:
                return key, Annotation(())
            found = read(files[key]["annotation"])
            for box in found.objects:
                checked_name(box.name, box.where)
            return key, found

        def read_image(key: str, annotation: Annotation) -> Image:
            pixels = {name: files[key][name] for name in modalities}
            where, declared_hw = f"{root}, image {key}", annotation.declared_hw
            size_hw = check_sizes(pixels, where, thermal_range=thermal_range, declared_hw=declared_hw)
            kept, ignored = [], []
            for box in annotation.objects:
                rule = "ignore flag" if box.is_ignored else box.name
                if not box.is_ignored and box.name not in ignore:
                    kept.append(box)
                elif ignores_regions:
                    ignored.append(ignored_region(rule, box.xyxy, image_hw=size_hw))
                else:
                    ignored.append(Ignored(rule))
            boxes = [
                checked_box(box.xyxy, image_hw=size_hw, slack_hw=(SLACK_PX, SLACK_PX), where=box.where)
                for box in kept
            ]
            labels = [_label(box, names) for box in kept]
            return Image(key, group_of(key), pixels, size_hw, boxes, labels, ignored)

        annotations = bad_samples.read_all((key, partial(read_annotation, key)) for key in files)
        names = tuple(classes) if classes is not None else _class_names(root, annotations, ignore)
        images = bad_samples.read_all((key, partial(read_image, key, found)) for key, found in annotations)
        super().__init__(
            images,
            where=root,
            classes=names,
            modalities=modalities,
            thermal_range=thermal_range,
            bad_samples=bad_samples,
        )


def _class_names(
    root: Path, annotations: Sequence[tuple[str, Annotation]], ignore: Collection[str]
) -> tuple[str, ...]:
    names = read_class_names(root)
    if names is not None:
        return names
    found = {
        box.name
        for _, annotation in annotations
        for box in annotation.objects
        if not box.is_ignored and box.name not in ignore
    }
    if annotations and not found:
        raise DataError(
            f"{root}: expected objects that name the classes, found none; list the classes in {root / 'classes.txt'}"
        )
    return tuple(sorted(found))


def _label(box: NamedBox, classes: Sequence[str]) -> int:
    if box.name not in classes:
        raise DataError(
            f"{box.where}: expected a class of data.classes ({one_line(', '.join(classes))}), got "
            f"{one_line(box.name)!r}; add it there, or to data.source.ignore"
        )
    return classes.index(box.name)
