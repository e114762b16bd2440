"""A COCO json whose images name one file per modality.

Keys of an image: `visible` or `rgb`, `thermal`, `event` (optional): paths relative to the root, all of one size;
`id`; optionally `width` and `height`, and `group_id`, `video_id` or `sequence` for its sequence. Category ids may
have gaps: label k is the k-th category in the order of the ids. How ids are compared: `raydet.files.coco`.

Annotations with `iscrowd` or `ignore` mark groups, or objects that could not be told apart. Training takes them for
background, and in evaluation a detection on one is neither right nor wrong.

Opening reads the json and the header of every image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.boxes import Box, Ignored, check_count, checked_box, ignored_region
from raydet.data.sources.files import Root
from raydet.data.sources.images import ThermalRange, check_sizes
from raydet.data.sources.paired_images import Image, PairedImages
from raydet.errors import DataError
from raydet.files.coco import Entry, Id, id_of, in_order, is_ignored, read_tree
from raydet.files.text import checked_name, one_line

MODALITY_KEYS: dict[str, tuple[str, ...]] = {
    "rgb": ("visible", "rgb"),
    "thermal": ("thermal",),
    "event": ("event",),
}
GROUP_KEYS = ("group_id", "video_id", "sequence")
SLACK_PX = 0.5
"""How far a box may leave the image: annotation tools round to pixels."""


class CocoSet(PairedImages):
    """The images of a COCO json, in its order.

    Args:
        annotations: the json file.
        root: directory of the images; default: that of the json.
        classes: names of categories in label order; default: all categories, without those that only group others
            (another's supercategory, and no annotation's category).
        leaves_out_others: objects of categories that are not in `classes` are left out; otherwise they are refused.
        is_labelled: False: annotations are not read, and may be missing.
        missing: modalities to leave out although the json names them.
        links_into: see `raydet.data.sources.files.Root`.
        thermal_range: see `raydet.data.sources.images`.
        on_bad: "skip" leaves out an image with a bad file, entry or box; a malformed json is always an error.

    Raises:
        DataError: the json or an image is not as described above.
    """

    def __init__(
        self,
        annotations: str | Path,
        *,
        root: str | Path | None = None,
        classes: Sequence[str] | None = None,
        leaves_out_others: bool = False,
        is_labelled: bool = True,
        missing: Collection[str] = (),
        links_into: str | None = None,
        thermal_range: ThermalRange | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        path, bad_samples = Path(annotations), BadSamples(on_bad)
        tree = read_tree(path, is_labelled=is_labelled)
        if not tree.images:
            raise DataError(f"{path}: expected images, found none; check data.source.annotations")
        names, groups = _read_categories(tree.categories, tree.annotations, path, is_labelled=is_labelled)
        classes = tuple(names.values()) if classes is None else tuple(classes)
        if leaves_out_others and not set(classes) <= set(names.values()):
            raise DataError(
                f"{path}: expected data.source.classes to be categories ({one_line(', '.join(names.values()))}), got "
                f"{one_line(', '.join(classes))}; correct the names"
            )
        id_of_name = {name: key for key, name in names.items()}
        taken = {id_of(entry.get("id")) for entry in tree.categories}
        unused = (number for number in range(len(classes) + len(taken)) if number not in taken)
        self.category_ids = tuple(
            id_of_name[name] if name in id_of_name else next(unused) for name in classes
        )
        """The category of each label; of a class that is no category here, a number that no category has."""
        reader = _Reader(
            path=path,
            root=Root(Path(root) if root is not None else path.parent, links_into),
            modalities=tuple(name for name in _modalities(tree.images, path) if name not in missing),
            thermal_range=thermal_range,
            label_of={name: label for label, name in enumerate(classes)},
            names=names,
            leaves_out_others=leaves_out_others,
            id_counts=Counter(_key(entry, number) for number, entry in enumerate(tree.images)),
            annotations=_by_image(tree.annotations if is_labelled else ()),
        )
        images = bad_samples.read_all(
            (one_line(_key(entry, number)), partial(reader.image, entry, number))
            for number, entry in enumerate(tree.images)
        )
        for where, error in reader.orphans():
            bad_samples.refuse(where, error, "annotation")
        super().__init__(
            images,
            where=path,
            classes=classes,
            modalities=reader.modalities,
            thermal_range=thermal_range,
            bad_samples=bad_samples,
            notes=[
                f"the category {one_line(name)!r} only groups others and has no annotation: it is no class"
                for name in groups
            ],
        )


@dataclass(frozen=True, slots=True)
class _Annotations:
    """The annotations of one image."""

    entries: list[tuple[str, Entry]] = field(default_factory=list)
    """Id and json entry of each."""
    repeated: list[str] = field(default_factory=list)
    """Ids that an earlier annotation already has."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """Converts json entries to images."""

    path: Path
    root: Root
    modalities: tuple[str, ...]
    thermal_range: ThermalRange | None
    label_of: Mapping[str, int]
    """Label of each class, by its name."""
    names: Mapping[Id, str]
    """Name of each category, by its id."""
    leaves_out_others: bool
    id_counts: Mapping[str, int]
    """Number of entries with each image id."""
    annotations: Mapping[str, _Annotations]

    def orphans(self) -> Iterator[tuple[str, DataError]]:
        """Annotations of unknown images: location and error of each."""
        for image_id, found in self.annotations.items():
            if image_id not in self.id_counts:
                for key, entry in found.entries:
                    where = self._where(key)
                    got = one_line(repr(entry.get("image_id")))
                    yield (
                        where,
                        DataError(f"{where}: expected an image_id from 'images', got {got}; correct it"),
                    )

    def _where(self, key: str) -> str:
        return f"{self.path}, annotation {one_line(key)}"

    def image(self, entry: Entry, number: int) -> Image:
        where = f"{self.path}, image {one_line(_key(entry, number))}"
        image_id = _checked_id(entry.get("id"), f"{self.path}, image number {number}")
        if self.id_counts[image_id] > 1:
            raise DataError(
                f"{self.path}: image ids must be unique, got {one_line(image_id)} twice; renumber the images"
            )
        files = {name: self._file(entry, name, where) for name in self.modalities}
        size_hw = check_sizes(
            files, where, thermal_range=self.thermal_range, declared_hw=_declared_size(entry, where)
        )
        group = next((entry[key] for key in GROUP_KEYS if entry.get(key) is not None), None)
        group_id = "" if group is None else _checked_id(group, f"{where}, group")
        return Image(image_id, group_id, files, size_hw, *self._targets(image_id, size_hw, where))

    def _file(self, entry: Entry, modality: str, where: str) -> Path:
        name = _file_of(entry, modality)
        if name is None:
            raise DataError(
                f"{where}: expected a {modality} file, because the first image has one, got none; add the key "
                f"{MODALITY_KEYS[modality][0]!r}, or declare {modality} in data.missing"
            )
        return self.root.inside(name, where)

    def _targets(
        self, image_id: str, size_hw: tuple[int, int], where: str
    ) -> tuple[list[Box], list[int], list[Ignored]]:
        annotations = self.annotations.get(image_id, _Annotations())
        for repeated in annotations.repeated:
            raise DataError(
                f"{self._where(repeated)}: annotation ids must be unique, got this one twice; renumber them"
            )
        check_count(len(annotations.entries), where)
        boxes: list[Box] = []
        labels: list[int] = []
        ignored: list[Ignored] = []
        for key, entry in annotations.entries:
            name = self._category_name(entry, self._where(key))
            label = self.label_of.get(name)
            if label is None:
                ignored.append(Ignored(f"category {name}"))
                continue
            xyxy = _xyxy(entry.get("bbox"), self._where(key))
            if is_ignored(entry, self._where(key)):
                rule = "iscrowd" if entry.get("iscrowd") else "ignore flag"
                ignored.append(ignored_region(rule, xyxy, image_hw=size_hw, label=label))
                continue
            slack_hw = (SLACK_PX, SLACK_PX)
            boxes.append(checked_box(xyxy, image_hw=size_hw, slack_hw=slack_hw, where=self._where(key)))
            labels.append(label)
        return boxes, labels, ignored

    def _category_name(self, entry: Entry, where: str) -> str:
        category = _category(entry)
        if category is None or category not in self.names:
            known = one_line(", ".join(map(repr, self.names)))
            raise DataError(
                f"{where}: expected a category_id from 'categories' ({known}), got "
                f"{one_line(repr(entry.get('category_id')))}; correct it or add the category"
            )
        name = self.names[category]
        if name not in self.label_of and not self.leaves_out_others:
            raise DataError(
                f"{where}: expected a category of data.classes ({one_line(', '.join(self.label_of))}), got "
                f"{one_line(name)!r}; name the categories to keep in data.source.classes"
            )
        return name


def _read_categories(
    entries: Sequence[Entry], annotations: Sequence[Entry], path: Path, *, is_labelled: bool
) -> tuple[dict[Id, str], list[str]]:
    """Names of the categories by id, in the order of the ids, and names of those that are left out as mere groups."""
    pairs = [(id_of(entry.get("id")), entry.get("name")) for entry in entries]
    members: dict[object, set[Id | None]] = {}
    for entry, (key, _) in zip(entries, pairs, strict=True):
        if isinstance(entry.get("supercategory"), str):
            members.setdefault(entry["supercategory"], set()).add(key)
    used = set(map(_category, annotations))
    groups: list[tuple[Id | None, object]] = []
    rest: list[tuple[Id | None, object]] = []
    for key, name in pairs:
        is_group = isinstance(name, str) and used and key not in used and members.get(name, set()) - {key}
        (groups if is_group else rest).append((key, name))
    kept = {
        key: checked_name(name, f"{path}, category")
        for key, name in rest
        if key is not None and isinstance(name, str)
    }
    if not len(rest) == len(kept) == len(set(kept.values())) or (is_labelled and not kept):
        raise DataError(
            f"{path}: expected categories with unique ids and unique names, got {one_line(entries)}; correct them"
        )
    return {key: kept[key] for key in in_order(list(kept))}, [str(name) for _, name in groups]


def _modalities(entries: Sequence[Entry], path: Path) -> tuple[str, ...]:
    """The modalities of the first image that has any; each image is checked to have the same when it is read."""
    for entry in entries:
        found = tuple(name for name in MODALITY_KEYS if _file_of(entry, name) is not None)
        if found:
            return found
    raise DataError(
        f"{path}: image {one_line(_key(entries[0], 0))}: expected a file under 'visible' (or 'rgb'), 'thermal' or "
        f"'event', got the keys {one_line(', '.join(entries[0]))}; name the file of each modality"
    )


def _file_of(entry: Entry, modality: str) -> object:
    return next((entry[key] for key in MODALITY_KEYS[modality] if entry.get(key)), None)


def _category(annotation: Entry) -> Id | None:
    return id_of(annotation.get("category_id"))


def _key(entry: Entry, number: int) -> str:
    """The id as a string; the entry's number if it has none."""
    found = id_of(entry.get("id"))
    return f"number {number}" if found is None else str(found)


def _checked_id(value: object, where: str) -> str:
    found = id_of(value)
    if found is None:
        raise DataError(
            f"{where}: expected an id (an integer or a string), got {one_line(repr(value))}; correct it"
        )
    return checked_name(str(found), where)


def _by_image(entries: Sequence[Entry]) -> dict[str, _Annotations]:
    found: dict[str, _Annotations] = {}
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        key, image_id = _key(entry, number), id_of(entry.get("image_id"))
        # What is no id gets a name that no image can have.
        annotations = found.setdefault("" if image_id is None else str(image_id), _Annotations())
        if key in seen:
            annotations.repeated.append(key)
        seen.add(key)
        annotations.entries.append((key, entry))
    return found


def _declared_size(entry: Entry, where: str) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    if width is None or height is None:
        return None
    if not isinstance(width, int | float) or not isinstance(height, int | float):
        raise DataError(
            f"{where}: width and height must be numbers, got {one_line(width)} and {one_line(height)}; correct them"
        )
    return height, width  # type: ignore[return-value]  # 640.0 equals 640, and fractions differ from the image


def _xyxy(bbox: object, where: str) -> Box:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(x, int | float) for x in bbox):
        raise DataError(f"{where}: expected bbox [x, y, width, height], got {one_line(bbox)}; correct it")
    try:
        x, y, w, h = map(float, bbox)
    except OverflowError as error:  # an integer larger than any float
        raise DataError(
            f"{where}: bbox must be of finite numbers, got {one_line(bbox)}; correct it"
        ) from error
    return x, y, x + w, y + h
