"""A COCO json whose images name one file per modality.

Keys of an image: `visible` or `rgb`, `thermal`, `event` (optional): paths relative to the root, all of one size;
`id`; optionally `width` and `height`, and `group_id`, `video_id` or `sequence` for its sequence. Category ids may
have gaps: label k is the k-th category in the order of the ids.

Boxes with `iscrowd` 1 surround groups, not objects. They are left out: neither trained on nor evaluated.

Opening reads the json and the header of every image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.boxes import Box, check_count, checked_box
from raydet.data.sources.files import Root, checked_name, one_line, read_json
from raydet.data.sources.images import ThermalRange, check_sizes
from raydet.data.sources.paired_images import Image, PairedImages
from raydet.errors import DataError

MODALITY_KEYS: dict[str, tuple[str, ...]] = {
    "rgb": ("visible", "rgb"),
    "thermal": ("thermal",),
    "event": ("event",),
}
GROUP_KEYS = ("group_id", "video_id", "sequence")
SLACK_PX = 0.5
"""How far a box may leave the image: annotation tools round to pixels."""

Entry = dict[str, Any]


class CocoSet(PairedImages):
    """The images of a COCO json, in its order.

    Args:
        annotations: the json file.
        root: directory of the images; default: that of the json.
        missing: modalities to leave out although the json names them.
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
        missing: Collection[str] = (),
        thermal_range: ThermalRange | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        path, bad_samples = Path(annotations), BadSamples(on_bad)
        tree = _read_tree(path)
        self.classes, label_of = _read_categories(tree["categories"], path)
        self.category_ids = tuple(label_of)  # by label
        reader = _Reader(
            path=path,
            root=Root(Path(root) if root is not None else path.parent),
            modalities=tuple(name for name in _modalities(tree["images"], path) if name not in missing),
            thermal_range=thermal_range,
            label_of=label_of,
            id_counts=Counter(_key(entry, number) for number, entry in enumerate(tree["images"])),
            annotations=_by_image(tree["annotations"]),
        )
        images = bad_samples.read_all(
            (one_line(_key(entry, number)), partial(reader.image, entry, number))
            for number, entry in enumerate(tree["images"])
        )
        for where, error in reader.orphans():
            bad_samples.refuse(where, error)
        super().__init__(
            images,
            where=path,
            classes=self.classes,
            modalities=reader.modalities,
            thermal_range=thermal_range,
            bad_samples=bad_samples,
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
    label_of: Mapping[int, int]
    id_counts: Mapping[str, int]
    """Number of entries with each image id."""
    annotations: Mapping[str, _Annotations]

    def orphans(self) -> Iterator[tuple[str, DataError]]:
        """Annotations of unknown images: location and error of each."""
        for image_id, found in self.annotations.items():
            if image_id not in self.id_counts:
                for key, _ in found.entries:
                    where = self._where(key)
                    problem = f"expected an image_id from 'images', got {one_line(image_id)}"
                    yield where, DataError(f"{where}: {problem}; correct it")

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
        boxes, labels = self._targets(image_id, size_hw, where)
        group = next((entry[key] for key in GROUP_KEYS if entry.get(key) is not None), None)
        group_id = "" if group is None else _checked_id(group, f"{where}, group")
        return Image(image_id, group_id, files, size_hw, boxes, labels)

    def _file(self, entry: Entry, modality: str, where: str) -> Path:
        name = _file_of(entry, modality)
        if name is None:
            raise DataError(
                f"{where}: expected a {modality} file, because the first image has one, got none; add the key "
                f"{MODALITY_KEYS[modality][0]!r}, or declare {modality} in data.missing"
            )
        return self.root.inside(name, where)

    def _targets(self, image_id: str, size_hw: tuple[int, int], where: str) -> tuple[list[Box], list[int]]:
        annotations = self.annotations.get(image_id, _Annotations())
        for repeated in annotations.repeated:
            raise DataError(
                f"{self._where(repeated)}: annotation ids must be unique, got this one twice; renumber them"
            )
        check_count(len(annotations.entries), where)
        boxes: list[Box] = []
        labels: list[int] = []
        for key, entry in annotations.entries:
            category = entry.get("category_id")
            label = self.label_of.get(category) if isinstance(category, int) else None
            if label is None:
                raise DataError(
                    f"{self._where(key)}: expected a category_id from 'categories' "
                    f"({one_line(', '.join(map(str, self.label_of)))}), got {one_line(category)}; correct it or add "
                    "the category"
                )
            if not entry.get("iscrowd"):
                boxes.append(_box(entry.get("bbox"), size_hw, self._where(key)))
                labels.append(label)
        return boxes, labels


def _read_tree(path: Path) -> dict[str, list[Entry]]:
    tree = read_json(path, expected="a COCO json")
    for key in ("images", "annotations", "categories"):
        entries = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: a COCO json must have a list of objects under {key!r}; write it again")
    if not tree["images"]:
        raise DataError(f"{path}: expected images, found none; check data.source.annotations")
    return dict(tree)


def _read_categories(entries: Sequence[Entry], path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names in label order, and the label of each category id."""
    pairs = [(entry.get("id"), entry.get("name")) for entry in entries]
    is_complete = all(isinstance(key, int) and isinstance(name, str) for key, name in pairs)
    if (
        not pairs
        or not is_complete
        or not len(pairs) == len({key for key, _ in pairs}) == len({name for _, name in pairs})
    ):
        raise DataError(
            f"{path}: expected categories with unique ids (integers) and unique names, got {one_line(entries)}; "
            "correct them"
        )
    ordered = sorted(
        (int(entry["id"]), checked_name(entry["name"], f"{path}, category")) for entry in entries
    )
    return tuple(name for _, name in ordered), {key: label for label, (key, _) in enumerate(ordered)}


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


def _file_of(entry: Mapping[str, Any], modality: str) -> object:
    return next((entry[key] for key in MODALITY_KEYS[modality] if entry.get(key)), None)


def _key(entry: Entry, number: int) -> str:
    """The id as a string; the entry's number if it has none."""
    found = entry.get("id")
    return str(found) if isinstance(found, int | str) else f"number {number}"


def _checked_id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f"{where}: expected an id (an integer or a string), got {one_line(value)}; correct it"
        )
    return checked_name(str(value), where)


def _by_image(entries: Sequence[Entry]) -> dict[str, _Annotations]:
    found: dict[str, _Annotations] = {}
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        key = _key(entry, number)
        image_id = entry.get("image_id")
        name = str(image_id) if isinstance(image_id, int | str) else one_line(image_id)
        annotations = found.setdefault(name, _Annotations())
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


def _box(bbox: object, size_hw: tuple[int, int], where: str) -> Box:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(x, int | float) for x in bbox):
        raise DataError(f"{where}: expected bbox [x, y, width, height], got {one_line(bbox)}; correct it")
    try:
        x, y, w, h = map(float, bbox)
    except OverflowError as error:  # an integer larger than any float
        raise DataError(
            f"{where}: bbox must be of finite numbers, got {one_line(bbox)}; correct it"
        ) from error
    return checked_box((x, y, x + w, y + h), image_hw=size_hw, slack_hw=(SLACK_PX, SLACK_PX), where=where)
