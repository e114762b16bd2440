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

from raydet.data.sources.bad_samples import OnBad, Sieve
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
        on_bad: "skip" leaves out an image with a bad file, entry or box; a json that is none stays an error.

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
        path, sieve = Path(annotations), Sieve(on_bad)
        tree = _read_tree(path)
        self.classes, label_of = _read_categories(tree["categories"], path)
        self.category_ids = tuple(label_of)  # by label
        reader = _Reader(
            path=path,
            root=Root(Path(root) if root is not None else path.parent),
            modalities=tuple(name for name in _modalities(tree["images"], path) if name not in missing),
            thermal_range=thermal_range,
            label_of=label_of,
            times=Counter(_key(entry, number) for number, entry in enumerate(tree["images"])),
            annotations=_by_image(tree["annotations"]),
        )
        images = sieve.all(
            (one_line(_key(entry, number)), partial(reader.image, entry, number))
            for number, entry in enumerate(tree["images"])
        )
        for place, image_id in reader.orphans():
            sieve.take(place, partial(_refuse_orphan, place, image_id))
        super().__init__(
            images,
            where=path,
            classes=self.classes,
            modalities=reader.modalities,
            thermal_range=thermal_range,
            sieve=sieve,
        )


@dataclass(frozen=True, slots=True)
class _Annotations:
    """Of one image: the id of each, and what it says."""

    entries: list[tuple[str, Entry]] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    """Ids that another annotation has already."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """From an image's entry to an image."""

    path: Path
    root: Root
    modalities: tuple[str, ...]
    thermal_range: ThermalRange | None
    label_of: Mapping[int, int]
    times: Mapping[str, int]
    """How often each image id is there."""
    annotations: Mapping[str, _Annotations]

    def orphans(self) -> Iterator[tuple[str, str]]:
        """Annotations of images that are not there: where they stand, and the image's id."""
        for image_id, mine in self.annotations.items():
            if image_id not in self.times:
                yield from ((self._place(key), image_id) for key, _ in mine.entries)

    def _place(self, key: str) -> str:
        return f"{self.path}, annotation {one_line(key)}"

    def image(self, entry: Entry, number: int) -> Image:
        where = f"{self.path}, image {one_line(_key(entry, number))}"
        image_id = _checked_id(entry.get("id"), f"{self.path}, image number {number}")
        if self.times[image_id] > 1:
            raise DataError(
                f"{self.path}: wanted different image ids, got {one_line(image_id)} twice; renumber the images"
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
                f"{where}: wanted a {modality} file, as the first image has one, got none; add the key "
                f"{MODALITY_KEYS[modality][0]!r}, or declare {modality} in data.missing"
            )
        return self.root.inside(name, where)

    def _targets(self, image_id: str, size_hw: tuple[int, int], where: str) -> tuple[list[Box], list[int]]:
        mine = self.annotations.get(image_id, _Annotations())
        for repeated in mine.repeated:
            raise DataError(
                f"{self._place(repeated)}: wanted different annotation ids, got this one twice; renumber them"
            )
        check_count(len(mine.entries), where)
        boxes: list[Box] = []
        labels: list[int] = []
        for key, entry in mine.entries:
            place = self._place(key)
            category = entry.get("category_id")
            label = self.label_of.get(category) if isinstance(category, int) else None
            if label is None:
                raise DataError(
                    f"{place}: wanted a category_id from 'categories' "
                    f"({one_line(', '.join(map(str, self.label_of)))}), got {one_line(category)}; correct it or add "
                    "the category"
                )
            if not entry.get("iscrowd"):
                boxes.append(_box(entry.get("bbox"), size_hw, place))
                labels.append(label)
        return boxes, labels


def _read_tree(path: Path) -> dict[str, list[Entry]]:
    tree = read_json(path, wanted="a COCO json")
    for key in ("images", "annotations", "categories"):
        entries = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: a COCO json wants a list of objects under {key!r}; write it again")
    if not tree["images"]:
        raise DataError(f"{path}: wanted images, found none; check data.source.annotations")
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
            f"{path}: wanted categories with different ids (integers) and different names, got {one_line(entries)}; "
            "correct them"
        )
    ordered = sorted(
        (int(entry["id"]), checked_name(entry["name"], f"{path}, category")) for entry in entries
    )
    return tuple(name for _, name in ordered), {key: label for label, (key, _) in enumerate(ordered)}


def _modalities(entries: Sequence[Entry], path: Path) -> tuple[str, ...]:
    """What the first image that has anything has; that the others have the same is checked as they are read."""
    for entry in entries:
        found = tuple(name for name in MODALITY_KEYS if _file_of(entry, name) is not None)
        if found:
            return found
    raise DataError(
        f"{path}: image {one_line(_key(entries[0], 0))}: wanted a file under 'visible' (or 'rgb'), 'thermal' or "
        f"'event', got the keys {one_line(', '.join(entries[0]))}; name the file of each modality"
    )


def _file_of(entry: Mapping[str, Any], modality: str) -> object:
    return next((entry[key] for key in MODALITY_KEYS[modality] if entry.get(key)), None)


def _key(entry: Entry, number: int) -> str:
    """The id as a text; an entry's number where it has none."""
    found = entry.get("id")
    return str(found) if isinstance(found, int | str) else f"number {number}"


def _checked_id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f"{where}: wanted an id for every image (a number or a name), got {one_line(value)}; add it"
        )
    return checked_name(str(value), where)


def _by_image(entries: Sequence[Entry]) -> dict[str, _Annotations]:
    found: dict[str, _Annotations] = {}
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        key = _key(entry, number)
        image_id = entry.get("image_id")
        name = str(image_id) if isinstance(image_id, int | str) else one_line(image_id)
        mine = found.setdefault(name, _Annotations())
        if key in seen:
            mine.repeated.append(key)
        seen.add(key)
        mine.entries.append((key, entry))
    return found


def _refuse_orphan(where: str, image_id: str) -> None:
    raise DataError(f"{where}: wanted an image_id from 'images', got {one_line(image_id)}; correct it")


def _declared_size(entry: Entry, where: str) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    if width is None or height is None:
        return None
    if not isinstance(width, int | float) or not isinstance(height, int | float):
        raise DataError(
            f"{where}: wanted numbers as width and height, got {one_line(width)} and {one_line(height)}; correct them"
        )
    return height, width  # type: ignore[return-value]  # 640.0 is 640, and what is not whole differs from the image


def _box(bbox: object, size_hw: tuple[int, int], where: str) -> Box:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(x, int | float) for x in bbox):
        raise DataError(f"{where}: wanted bbox [x, y, width, height], got {one_line(bbox)}; correct it")
    try:
        x, y, w, h = map(float, bbox)
    except OverflowError as error:  # an integer beyond all floats
        raise DataError(
            f"{where}: wanted bbox of finite numbers, got {one_line(bbox)}; correct it"
        ) from error
    return checked_box((x, y, x + w, y + h), image_hw=size_hw, slack_hw=(SLACK_PX, SLACK_PX), where=where)
