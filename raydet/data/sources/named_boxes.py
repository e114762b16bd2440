"""Annotations that name their classes: from names to labels, and to the images of a set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raydet.data.sources.bad_samples import Sieve
from raydet.data.sources.boxes import Box, checked_box
from raydet.data.sources.files import checked_name, one_line
from raydet.data.sources.images import ThermalRange, check_sizes
from raydet.data.sources.paired_images import Image
from raydet.data.sources.yolo_rows import read_class_names
from raydet.errors import DataError

SLACK_PX = 1.0
"""How far a box may leave the image: these formats hold whole pixels, and tools differ on whether the first is 0."""


@dataclass(frozen=True, slots=True)
class NamedBox:
    """An object before it is known which classes there are."""

    name: str
    xyxy: Box
    """In pixels, unchecked."""
    where: str
    """File and object, for errors."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a file says about one image."""

    objects: Sequence[NamedBox]
    declared_hw: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class NamedReader:
    """How the images of one set are put together."""

    root: Path
    modalities: Sequence[str]
    read: Callable[[Path], Annotation]
    """Of the file "annotation" of each image."""
    group_of: Callable[[str], str]
    """From an image's id to its sequence."""
    ignore: Collection[str]
    """Names of objects that are left out."""
    thermal_range: ThermalRange | None

    def open(
        self, files: Mapping[str, Mapping[str, Path]], *, classes: Sequence[str] | None, sieve: Sieve
    ) -> tuple[list[Image], tuple[str, ...]]:
        """The images in the given order, and the class names in label order.

        Args:
            files: by the image's id, then by modality; the annotation under "annotation".
            classes: names in label order; default: the lines of `classes.txt` in the root, or else all names that are
                there, in alphabetical order.

        Raises:
            DataError: a file is bad, or an object has another name. With a sieve that skips, the image is left out.
        """
        annotations = {
            key: sieve.take(key, partial(self._annotation, paths["annotation"]))
            for key, paths in files.items()
        }
        good = {key: found for key, found in annotations.items() if found is not None}
        names = tuple(classes) if classes is not None else self._names(list(good.values()))
        images = sieve.all(
            (key, partial(self._image, key, files[key], annotation, names))
            for key, annotation in good.items()
        )
        return images, names

    def _annotation(self, path: Path) -> Annotation:
        found = self.read(path)
        kept = [box for box in found.objects if box.name not in self.ignore]
        for box in kept:
            checked_name(box.name, box.where)
        return Annotation(kept, found.declared_hw)

    def _names(self, annotations: Sequence[Annotation]) -> tuple[str, ...]:
        written = read_class_names(self.root)
        if written is not None:
            return written
        names = {box.name for annotation in annotations for box in annotation.objects}
        if annotations and not names:
            raise DataError(
                f"{self.root}: wanted objects, to learn the classes from them, found none; name the classes in "
                f"{self.root / 'classes.txt'}"
            )
        return tuple(sorted(names))

    def _image(
        self, key: str, paths: Mapping[str, Path], annotation: Annotation, classes: Sequence[str]
    ) -> Image:
        pixels = {name: paths[name] for name in self.modalities}
        size_hw = check_sizes(
            pixels,
            f"{self.root}, image {key}",
            thermal_range=self.thermal_range,
            declared_hw=annotation.declared_hw,
        )
        boxes = [
            checked_box(box.xyxy, image_hw=size_hw, slack_hw=(SLACK_PX, SLACK_PX), where=box.where)
            for box in annotation.objects
        ]
        labels = [_label(box, classes) for box in annotation.objects]
        return Image(key, self.group_of(key), pixels, size_hw, boxes, labels)


def _label(box: NamedBox, classes: Sequence[str]) -> int:
    if box.name not in classes:
        raise DataError(
            f"{box.where}: wanted a class of data.classes ({one_line(', '.join(classes))}), got "
            f"{one_line(box.name)!r}; name it there, or in data.source.ignore"
        )
    return classes.index(box.name)


def prefix_of(key: str, *, letters: int) -> str:
    """The first letters of a name, where they say its sequence.

    >>> prefix_of("010002", letters=2)
    '01'
    """
    return key[:letters]
