"""Ground truth and detections of other tools, read from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.files.coco import Entry, Id, entries_of, id_of, in_order, is_ignored, read_tree
from raydet.files.text import read_json
from raydet.metrics.coco import GroundTruth


def read_coco(truth: Path, detections: Path) -> tuple[GroundTruth, NDArray[np.float64], tuple[str, ...]]:
    """COCO's own formats: a ground truth, and a list of results with `image_id`, `category_id`, `bbox` and `score`.

    Images and classes are in the order of their ids, by which pycocotools breaks ties between equal scores. Annotations
    with `iscrowd` or `ignore` are regions in which detections are not counted as wrong; pycocotools overlooks `ignore`.

    Returns:
        Truth, detections and class names as `evaluate_coco` takes them; image sizes if all images have them.

    Raises:
        DataError: a file is not in the format; the message names the entry and what was expected.
    """
    tree = read_tree(truth)
    annotations = tree.annotations
    images, labels = (index_by_id(entries, where=truth) for entries in (tree.images, tree.categories))
    listed, categories = (
        [
            entries[row]
            for row in np.argsort(indices_of(column(entries, "id", where=truth), known, where=str(truth)))
        ]
        for entries, known in ((tree.images, images), (tree.categories, labels))
    )
    sizes = [(entry.get("height"), entry.get("width")) for entry in listed]
    where = f"{truth}: annotation"
    boxes = finite_numbers(column(annotations, "bbox", where=truth), (4,), where=where)
    own_areas = (entry.get("area") for entry in annotations)
    areas = [box[2] * box[3] if own is None else own for own, box in zip(own_areas, boxes, strict=True)]
    ground = GroundTruth(
        num_images=len(images),
        image_index=indices_of(column(annotations, "image_id", where=truth), images, where=where),
        boxes_xywh=boxes,
        labels=indices_of(column(annotations, "category_id", where=truth), labels, where=where),
        areas=finite_numbers(areas, (), where=f"{truth}: the area of annotation"),
        is_crowd=np.array(
            [is_ignored(entry, f"{where} {number}") for number, entry in enumerate(annotations)], dtype=bool
        ),
        sizes_hw=finite_numbers(sizes, (2,), where=f"{truth}: image size") if all(map(all, sizes)) else None,
    )
    found = entries_of(read_json(detections, expected="a list of detections"), None, where=detections)
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


def column(entries: Sequence[Entry], key: str, *, where: Path) -> list[Any]:
    """The value of one key in every entry."""
    for number, entry in enumerate(entries):
        if key not in entry:
            keys = ", ".join(map(repr, entry)) or "nothing"
            raise DataError(f"{where}: entry {number} must have {key!r}, got {keys}")
    return [entry[key] for entry in entries]


def index_by_id(entries: Sequence[Entry], *, where: Path) -> dict[Id, int]:
    """Index by id, in the order of the ids, see `raydet.files.coco`."""
    ids = []
    for number, found in enumerate(column(entries, "id", where=where)):
        name = id_of(found)
        if name is None:
            raise DataError(
                f"{where}: the 'id' of entry {number} must be an integer or a string, got {found!r}"
            )
        ids.append(name)
    unique = len(set(ids))
    if not ids or unique < len(ids):
        raise DataError(f"{where}: expected one or more unique ids, got {len(ids)}, {unique} of them unique")
    return {name: index for index, name in enumerate(in_order(ids))}


def indices_of(ids: Sequence[Any], known: Mapping[Id, int], *, where: str) -> NDArray[np.int64]:
    """Indices of ids, all of which must be known."""
    names = list(map(id_of, ids))
    for number, name in enumerate(names):
        if name not in known:
            first, *_, last = (*known, *known)
            raise DataError(
                f"{where} {number} has the unknown id {ids[number]!r}; known: {first!r} to {last!r}"
            )
    return np.array([known[name] for name in names if name is not None], dtype=np.int64)


def finite_numbers(values: Sequence[Any], shape: tuple[int, ...], *, where: str) -> NDArray[np.float64]:
    """Values of one shape each, all of them finite: [len(values), *shape]."""
    try:
        array = np.array(values, dtype=float).reshape(len(values), *shape)
        if np.isfinite(array).all():
            return array
    except (TypeError, ValueError, OverflowError):
        pass  # the loop below finds out which value it was
    for number, value in enumerate(values):
        try:
            is_good = np.isfinite(np.array(value, dtype=float)).all() and np.shape(value) == shape
        except (TypeError, ValueError, OverflowError):
            is_good = False
        if not is_good:
            expected = f"{shape[0]} finite numbers" if shape else "a finite number"
            raise DataError(f"{where} {number} must have {expected}, got {value!r}")
    raise AssertionError("no value was bad")
