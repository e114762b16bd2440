"""Ground truth and detections of other tools, read from files."""

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

    Images and classes are in the order of their ids, by which pycocotools breaks ties between equal scores.

    Returns:
        Truth, detections and class names as `evaluate_coco` takes them; image sizes if all images have them.

    Raises:
        DataError: a file is not in the format; the message names the entry and what was expected.
    """
    tree = read_json(truth)
    listed, annotations, categories = (
        entries_of(tree, key, where=truth) for key in ("images", "annotations", "categories")
    )
    images, labels = (index_by_id(entries, where=truth) for entries in (listed, categories))
    listed.sort(key=lambda entry: images[entry["id"]])
    categories.sort(key=lambda category: labels[category["id"]])
    sizes = [(entry.get("height"), entry.get("width")) for entry in listed]
    where = f"{truth}: annotation"
    boxes = finite_numbers(column(annotations, "bbox", where=truth), (4,), where=where)
    areas = [entry.get("area", box[2] * box[3]) for entry, box in zip(annotations, boxes, strict=True)]
    ground = GroundTruth(
        num_images=len(images),
        image_index=indices_of(column(annotations, "image_id", where=truth), images, where=where),
        boxes_xywh=boxes,
        labels=indices_of(column(annotations, "category_id", where=truth), labels, where=where),
        areas=finite_numbers(areas, (), where=where),
        is_crowd=np.array([bool(entry.get("iscrowd")) for entry in annotations], dtype=bool),
        sizes_hw=finite_numbers(sizes, (2,), where=f"{truth}: image size") if all(map(all, sizes)) else None,
    )
    found = entries_of(read_json(detections), None, where=detections)
    image_ids, found_boxes, scores, category_ids = (
        column(found, key, where=detections) for key in ("image_id", "bbox", "score", "category_id")
    )
    where = f"{detections}: detection"
    rows = np.column_stack(
        [
            indices_of(image_ids, images, where=where),
            finite_numbers(found_boxes, (4,), where=where),
            finite_numbers(scores, (), where=where),
            indices_of(category_ids, labels, where=where),
        ]
    )
    return ground, rows, tuple(map(str, column(categories, "name", where=truth)))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def entries_of(tree: Any, key: str | None, *, where: Path) -> Entries:
    """The list of objects under a key, or the tree itself where `key` is None."""
    entries = tree if key is None else tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{where}: expected a list of objects{'' if key is None else f' under {key!r}'}")
    return entries


def column(entries: Entries, key: str, *, where: Path) -> list[Any]:
    """The value of one key in every entry."""
    for number, entry in enumerate(entries):
        if key not in entry:
            keys = ", ".join(map(repr, entry)) or "nothing"
            raise DataError(f"{where}: entry {number} must have {key!r}, got {keys}")
    return [entry[key] for entry in entries]


def index_by_id(entries: Entries, *, where: Path) -> dict[Hashable, int]:
    """Index by id, in the order of the ids, which are integers or strings."""
    ids = column(entries, "id", where=where)
    for number, name in enumerate(ids):
        if not isinstance(name, int | str):
            raise DataError(
                f"{where}: the 'id' of entry {number} must be an integer or a string, got {name!r}"
            )
    unique = len(set(ids))
    if not ids or unique < len(ids):
        raise DataError(f"{where}: expected one or more unique ids, got {len(ids)}, {unique} of them unique")
    ordered = sorted(ids, key=lambda name: (isinstance(name, str), name))
    return {name: index for index, name in enumerate(ordered)}


def indices_of(ids: Sequence[Any], known: Mapping[Hashable, int], *, where: str) -> NDArray[np.int64]:
    """Indices of ids, all of which must be known."""
    for number, name in enumerate(ids):
        if not isinstance(name, Hashable) or name not in known:
            first, *_, last = (*known, *known)
            raise DataError(f"{where} {number} has the unknown id {name!r}; known: {first!r} to {last!r}")
    return np.array([known[name] for name in ids], dtype=np.int64)


def finite_numbers(values: Sequence[Any], shape: tuple[int, ...], *, where: str) -> NDArray[np.float64]:
    """Values of one shape each, all of them finite: [len(values), *shape]."""
    try:
        array = np.array(values, dtype=float).reshape(len(values), *shape)
        if np.isfinite(array).all():
            return array
    except (TypeError, ValueError):
        pass  # the loop below finds out which value it was
    for number, value in enumerate(values):
        try:
            is_good = np.isfinite(np.array(value, dtype=float)).all() and np.shape(value) == shape
        except (TypeError, ValueError):
            is_good = False
        if not is_good:
            expected = f"{shape[0]} finite numbers" if shape else "a finite number"
            raise DataError(f"{where} {number} must have {expected}, got {value!r}")
    raise AssertionError("no value was bad")
