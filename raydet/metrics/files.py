"""Truth and detections of other tools, from files."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.metrics.coco import GroundTruth

Entries = list[dict[str, Any]]


def read_coco(truth: Path, detections: Path) -> tuple[GroundTruth, NDArray[np.float64], tuple[str, ...]]:
    """COCO's own formats: a ground truth, and a list of results with `image_id`, `category_id`, `bbox` and `score`.

    Images and classes are in the order of their ids, by which pycocotools decides between equal scores.

    Returns:
        Truth, detections and class names as `evaluate_with_records` takes them; sizes where all images have them.

    Raises:
        DataError: a file is not as described; which entry, and what was wanted.
    """
    tree = read_json(truth)
    listed, annotations, categories = (
        entries_of(tree, key, where=truth) for key in ("images", "annotations", "categories")
    )
    images, labels = (places_by_id(entries, where=truth) for entries in (listed, categories))
    listed.sort(key=lambda entry: images[entry["id"]])
    categories.sort(key=lambda category: labels[category["id"]])
    sizes = [(entry.get("height"), entry.get("width")) for entry in listed]
    where = f"{truth}: annotation"
    boxes = numbers(column(annotations, "bbox", where=truth), (4,), where=where)
    areas = [
        annotation.get("area", box[2] * box[3]) for annotation, box in zip(annotations, boxes, strict=True)
    ]
    ground = GroundTruth(
        num_images=len(images),
        image_index=places(column(annotations, "image_id", where=truth), images, where=where),
        boxes_xywh=boxes,
        labels=places(column(annotations, "category_id", where=truth), labels, where=where),
        areas=numbers(areas, (), where=where),
        is_crowd=np.array([bool(annotation.get("iscrowd")) for annotation in annotations], dtype=bool),
        sizes_hw=numbers(sizes, (2,), where=f"{truth}: size of image") if all(map(all, sizes)) else None,
    )
    found = entries_of(read_json(detections), None, where=detections)
    where = f"{detections}: detection"
    rows = np.column_stack(
        [
            places(column(found, "image_id", where=detections), images, where=where),
            numbers(column(found, "bbox", where=detections), (4,), where=where),
            numbers(column(found, "score", where=detections), (), where=where),
            places(column(found, "category_id", where=detections), labels, where=where),
        ]
    )
    return ground, rows, tuple(map(str, column(categories, "name", where=truth)))


def read_json(path: Path) -> Any:
    """What a file holds."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: wanted a json file, {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: wanted a json file, got a broken one ({error})") from error


def entries_of(tree: Any, key: str | None, *, where: Path) -> Entries:
    """The list of objects under a key; None: that is all there is."""
    entries = tree if key is None else tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{where}: wanted a list of objects{'' if key is None else f' under {key!r}'}")
    return entries


def column(entries: Entries, key: str, *, where: Path) -> list[Any]:
    """One value of every entry."""
    for number, entry in enumerate(entries):
        if key not in entry:
            raise DataError(
                f"{where}: entry {number} wants {key!r}, got {', '.join(map(repr, entry)) or 'nothing'}"
            )
    return [entry[key] for entry in entries]


def places_by_id(entries: Entries, *, where: Path) -> dict[Hashable, int]:
    """Position by id, in the order of the ids: numbers, or names."""
    ids = column(entries, "id", where=where)
    for number, name in enumerate(ids):
        if not isinstance(name, int | str):
            raise DataError(f"{where}: entry {number} wants a number or a name as its 'id', got {name!r}")
    if not ids or len(set(ids)) < len(ids):
        raise DataError(
            f"{where}: wanted one or more different ids, got {len(ids)}, {len(set(ids))} of them different"
        )
    ordered = sorted(ids, key=lambda name: (isinstance(name, str), name))
    return {name: place for place, name in enumerate(ordered)}


def places(ids: Sequence[Any], known: Mapping[Hashable, int], *, where: str) -> NDArray[np.int64]:
    """Positions of ids that must be known."""
    for number, name in enumerate(ids):
        if not isinstance(name, Hashable) or name not in known:
            first, *_, last = (*known, *known)
            raise DataError(
                f"{where} {number} names {name!r}, which is unknown; known: {first!r} to {last!r}"
            )
    return np.array([known[name] for name in ids], dtype=np.int64)


def numbers(values: Sequence[Any], shape: tuple[int, ...], *, where: str) -> NDArray[np.float64]:
    """Finite numbers, of one shape each: [len(values), *shape]."""
    try:
        array = np.array(values, dtype=float).reshape(len(values), *shape)
        if np.isfinite(array).all():
            return array
    except (TypeError, ValueError):
        pass  # which one it was is found out below
    for number, value in enumerate(values):
        try:
            is_good = np.isfinite(np.array(value, dtype=float)).all() and np.shape(value) == shape
        except (TypeError, ValueError):
            is_good = False
        if not is_good:
            wanted = f"{shape[0]} finite numbers" if shape else "a finite number"
            raise DataError(f"{where} {number} wants {wanted}, got {value!r}")
    raise AssertionError("no value was bad")
