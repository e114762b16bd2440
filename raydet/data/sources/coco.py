"""A COCO json whose images name one file per modality.

Keys of an image: `visible` or `rgb`, `thermal`, `event` (optional): paths relative to the root, all of one size;
`id`; optionally `width` and `height`, and `group_id`, `video_id` or `sequence` for its sequence. Category ids may
have gaps: label k is the k-th category in the order of the ids.

Boxes with `iscrowd` 1 surround groups, not objects. They are left out: neither trained on nor evaluated.

Opening reads the json and the header of every picture. Pillow decodes, because it refuses a truncated JPEG.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raydet.data.sources.base import Targets
from raydet.data.sources.boxes import Box, checked_box, target_tensors
from raydet.errors import DataError
from raydet.structures import Sample

MODALITY_KEYS: dict[str, tuple[str, ...]] = {
    "rgb": ("visible", "rgb"),
    "thermal": ("thermal",),
    "event": ("event",),
}
GROUP_KEYS = ("group_id", "video_id", "sequence")
SLACK_PX = 0.5
"""How far a box may leave the picture: annotation tools round to pixels."""
GREY_SPREAD = 16
"""Largest difference between the channels of a grey picture that was stored as colour: JPEG's doing."""


@dataclass(frozen=True, slots=True)
class _Picture:
    image_id: str
    group_id: str
    files: Mapping[str, Path]
    size_hw: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


class CocoSet:
    """The pictures of a COCO json, in its order.

    Args:
        annotations: the json file.
        root: directory of the pictures; default: that of the json.
        missing: modalities to leave out although the json names them.

    Raises:
        DataError: the json or a picture is not as described above.
    """

    def __init__(
        self, annotations: str | Path, *, root: str | Path | None = None, missing: Collection[str] = ()
    ) -> None:
        path = Path(annotations)
        tree = _read_json(path)
        self.classes, label_of = _read_categories(tree["categories"], path)
        self.category_ids = tuple(label_of)  # by label
        self.modalities = tuple(name for name in _modalities(tree["images"], path) if name not in missing)
        directory = Path(root) if root is not None else path.parent
        pictures: dict[str, _Picture] = {}
        for entry in tree["images"]:
            picture = _read_picture(entry, self.modalities, directory, path)
            if picture.image_id in pictures:
                raise DataError(
                    f"{path}: wanted different image ids, got {picture.image_id} twice; renumber the images"
                )
            pictures[picture.image_id] = picture
        _take_boxes(tree["annotations"], pictures, label_of, path)
        self._pictures = list(pictures.values())
        self.image_ids = list(pictures)
        self.group_ids = [picture.group_id for picture in self._pictures]

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> Sample:
        """One picture, decoded to uint8."""
        picture = self._pictures[index]
        boxes_xyxy, labels, size_hw = self.targets(index)
        return Sample(
            image_id=picture.image_id,
            group_id=picture.group_id,
            modalities={name: _decode(path, name) for name, path in picture.files.items()},
            boxes_xyxy=boxes_xyxy,
            labels=labels,
            source_hw=size_hw,
            valid_hw=size_hw,
        )

    def targets(self, index: int) -> Targets:
        """The boxes alone; no pixel is read."""
        picture = self._pictures[index]
        return *target_tensors(picture.boxes, picture.labels), picture.size_hw


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise DataError(
            f"{path}: wanted a COCO json, {error.strerror}; check data.source.annotations"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: wanted a COCO json, got a broken one ({error}); write it again") from error
    for key in ("images", "annotations", "categories"):
        entries = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: a COCO json wants a list of objects under {key!r}; write it again")
    if not tree["images"]:
        raise DataError(f"{path}: wanted images, found none; check data.source.annotations")
    return dict(tree)


def _read_categories(entries: Sequence[dict[str, Any]], path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names in label order, and the label of each category id."""
    names = {entry.get("id"): entry.get("name") for entry in entries}
    is_complete = all(isinstance(key, int) and isinstance(name, str) for key, name in names.items())
    if not entries or not is_complete or not len(entries) == len(names) == len(set(names.values())):
        raise DataError(
            f"{path}: wanted categories with different ids (integers) and different names, got {entries}; correct them"
        )
    ordered = sorted((int(entry["id"]), str(entry["name"])) for entry in entries)
    return tuple(name for _, name in ordered), {key: label for label, (key, _) in enumerate(ordered)}


def _modalities(entries: Sequence[dict[str, Any]], path: Path) -> tuple[str, ...]:
    """What the first image has; that the others have the same is checked as they are read."""
    found = tuple(name for name in MODALITY_KEYS if _file_of(entries[0], name) is not None)
    if not found:
        raise DataError(
            f"{path}: image {entries[0].get('id')}: wanted a file under 'visible' (or 'rgb'), 'thermal' or 'event', "
            f"got the keys {', '.join(entries[0])}; name the file of each modality"
        )
    return found


def _file_of(entry: Mapping[str, Any], modality: str) -> str | None:
    return next((str(entry[key]) for key in MODALITY_KEYS[modality] if entry.get(key)), None)


def _read_picture(entry: dict[str, Any], modalities: Sequence[str], root: Path, path: Path) -> _Picture:
    if not isinstance(entry.get("id"), int | str):
        raise DataError(f"{path}: wanted an id for every image, got {entry}; number the images")
    where = f"{path}, image {entry['id']}"
    files = {name: _path_of(entry, name, root, where) for name in modalities}
    sizes = {name: _read_size(file, where) for name, file in files.items()}
    if entry.get("width") is not None and entry.get("height") is not None:
        sizes["the json"] = (entry["height"], entry["width"])
    if len(set(sizes.values())) != 1:
        shown = ", ".join(f"{name} {width} x {height}" for name, (height, width) in sizes.items())
        raise DataError(
            f"{where}: wanted one size (width x height) in all modalities, got {shown}; align the pictures"
        )
    group = next((entry[key] for key in GROUP_KEYS if entry.get(key) is not None), "")
    return _Picture(
        image_id=str(entry["id"]), group_id=str(group), files=files, size_hw=next(iter(sizes.values()))
    )


def _path_of(entry: Mapping[str, Any], modality: str, root: Path, where: str) -> Path:
    name = _file_of(entry, modality)
    if name is None:
        raise DataError(
            f"{where}: wanted a {modality} file, as the first image has one, got none; add the key "
            f"{MODALITY_KEYS[modality][0]!r}, or declare {modality} in data.missing"
        )
    # By name only: links below the root are the user's own, the json may be someone else's.
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise DataError(
            f"{where}: wanted a path below {root}, got {name!r}; move the picture or set data.source.root"
        )
    return root / name


def _read_size(path: Path, where: str) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        reason = (
            "the file is not there" if isinstance(error, FileNotFoundError) else f"it is no picture ({error})"
        )
        raise DataError(
            f"{where}: wanted {path}, {reason}; add the file or take the image out of the json"
        ) from error


def _take_boxes(
    entries: Sequence[dict[str, Any]],
    pictures: Mapping[str, _Picture],
    label_of: Mapping[int, int],
    path: Path,
) -> None:
    seen: set[object] = set()
    for number, entry in enumerate(entries):
        annotation_id = entry.get("id", f"number {number}")
        where = f"{path}, annotation {annotation_id}"
        if annotation_id in seen:
            raise DataError(
                f"{where}: wanted different annotation ids, got this one twice; renumber the annotations"
            )
        seen.add(annotation_id)
        picture = pictures.get(str(entry.get("image_id")))
        if picture is None:
            raise DataError(
                f"{where}: wanted an image_id from 'images', got {entry.get('image_id')}; correct it"
            )
        label = label_of.get(entry.get("category_id", -1))
        if label is None:
            raise DataError(
                f"{where}: wanted a category_id from 'categories' ({', '.join(map(str, label_of))}), "
                f"got {entry.get('category_id')}; correct it or add the category"
            )
        if not entry.get("iscrowd"):
            picture.boxes.append(_box(entry.get("bbox"), picture.size_hw, where))
            picture.labels.append(label)


def _box(bbox: object, size_hw: tuple[int, int], where: str) -> Box:
    if (
        not isinstance(bbox, list)
        or len(bbox) != 4
        or not all(isinstance(value, int | float) for value in bbox)
    ):
        raise DataError(f"{where}: wanted bbox [x, y, width, height], got {bbox}; correct it")
    x, y, w, h = bbox
    return checked_box((x, y, x + w, y + h), picture_hw=size_hw, slack_hw=(SLACK_PX, SLACK_PX), where=where)


def _decode(path: Path, modality: str) -> Tensor:
    """uint8 [C, H, W]."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's three ways to refuse a damaged file
        raise DataError(f"{path}: the picture is truncated or damaged ({error}); copy it again") from error
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{path}: wanted 8 bits per channel, got mode {image.mode}; convert the picture to 8 bits"
        )
    pixels_CHW = (
        np.array(image.convert("RGB")).transpose(2, 0, 1) if modality == "rgb" else _grey(image, path)
    )
    return torch.from_numpy(np.ascontiguousarray(pixels_CHW))


def _grey(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """[1, H, W]; three equal channels are one."""
    if image.mode != "L":
        colour_HWC = np.array(image.convert("RGB")).astype(np.int16)
        spread = int(np.ptp(colour_HWC, axis=2).max())
        if spread > GREY_SPREAD:
            raise DataError(
                f"{path}: wanted one channel or three equal ones, got colours (channels differ by up to {spread}); "
                "store the values themselves, not a colour map of them"
            )
    return np.array(image.convert("L"))[None]
