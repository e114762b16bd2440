"""KAIST's pedestrian benchmark: its files, its "reasonable" set, its miss rates by day and night.

Published figures come from one script (github.com/sejong-rcv/INSANet, `evaluation`), which does not count the objects
of images without any detection, so that a detector loses nothing by missing all of them. `miss_rates_of` can count
either way; counting all objects gives a miss rate that is higher, or equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.files.coco import Id, entries_of, id_of
from raydet.files.text import read_json
from raydet.metrics.coco import GroundTruth
from raydet.metrics.files import column, finite_numbers, index_by_id, indices_of
from raydet.metrics.miss_rate import ignoring, miss_rates

MIN_HEIGHT_PX = 55.0
MAX_OCCLUSION = 1
"""0 none, 1 partial, 2 heavy."""
FRAME_XYXY = (5.0, 5.0, 635.0, 507.0)
"""Part of the 512 x 640 images that an object of the reasonable set must be inside."""
PERSON = 1
NIGHT = ("set09", "set10", "set11")
"""Sequences of the test set that were recorded at night; set06 to set08 were recorded by day."""


@dataclass(frozen=True, slots=True)
class KaistSet:
    """The test set; objects outside the reasonable set are marked as crowd, which makes them ignored."""

    truth: GroundTruth
    is_night: NDArray[np.bool_]
    """[I]."""
    index_by_id: dict[Id, int]


def read_annotations(path: Path) -> KaistSet:
    """The benchmark's JSON: COCO's format, with `height`, `occlusion` and `ignore` for every box.

    Raises:
        DataError: the file is not in this format.
    """
    tree = read_json(path, expected="KAIST_annotation.json")
    images, annotations = (entries_of(tree, key, where=path) for key in ("images", "annotations"))
    index = index_by_id(images, where=path)
    labels = column(annotations, "category_id", where=path)
    people = [entry for entry, label in zip(annotations, labels, strict=True) if label == PERSON]
    where = f"{path}: person"
    boxes = finite_numbers(column(people, "bbox", where=path), (4,), where=where)
    height, occlusion, ignore = (
        finite_numbers(column(people, key, where=path), (), where=where)
        for key in ("height", "occlusion", "ignore")
    )
    corners = boxes[:, :2] + boxes[:, 2:]
    is_truncated = (boxes[:, :2] < FRAME_XYXY[:2]).any(axis=1) | (corners > FRAME_XYXY[2:]).any(axis=1)
    is_night = np.zeros(len(images), dtype=bool)
    rows = indices_of(column(images, "id", where=path), index, where=f"{path}: image")
    for row, name in zip(rows, column(images, "im_name", where=path), strict=True):
        is_night[row] = str(name).startswith(NIGHT)
    truth = GroundTruth(
        num_images=len(images),
        image_index=indices_of(column(people, "image_id", where=path), index, where=where),
        boxes_xywh=boxes,
        labels=np.zeros(len(people), dtype=np.int64),
        is_crowd=(ignore > 0) | (height < MIN_HEIGHT_PX) | (occlusion > MAX_OCCLUSION) | is_truncated,
    )
    return KaistSet(truth, is_night, index)


def read_detections(path: Path, kaist: KaistSet) -> NDArray[np.float64]:
    """Rows for `miss_rates` from lines of `image,x,y,width,height,score`, where image is the id + 1.

    Raises:
        DataError: a line is not in this format.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = np.zeros((len(numbered), 7))
    for row, (number, line) in zip(rows, numbered, strict=True):
        must = f"{path}: line {number} must have"
        try:
            image, *values = map(float, line.split(","))
            row[1:6] = values
            image_id = id_of(image - 1)
        except ValueError:
            raise DataError(f"{must} 6 numbers: image,x,y,width,height,score; got {line!r}") from None
        if image_id is None or image_id not in kaist.index_by_id or not np.isfinite(row).all():
            last = len(kaist.index_by_id)
            raise DataError(f"{must} finite numbers and an image from 1 to {last}, got {line!r}")
        row[0] = kaist.index_by_id[image_id]
    return rows


def miss_rates_of(
    kaist: KaistSet, rows: NDArray[np.float64], *, as_published: bool
) -> dict[str, float | None]:
    """Log-average miss rate of all images, of those by day, and of those at night, in 0..1; None: no objects.

    Args:
        as_published: do not count objects of images without detections, as the published script does.
    """
    every = np.ones(kaist.truth.num_images, dtype=bool)
    rates = {}
    for name, chosen in (("all", every), ("day", ~kaist.is_night), ("night", kaist.is_night)):
        truth, found = _subset(kaist.truth, rows, chosen)
        if as_published:
            truth = ignoring(truth, ~np.isin(truth.image_index, found[:, 0]))
        rate = miss_rates(truth, found, 1)[0]
        rates[name] = None if np.isnan(rate) else float(rate)
    return rates


def _subset(
    truth: GroundTruth, rows: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[GroundTruth, NDArray[np.float64]]:
    """Objects and detections of some images, which are renumbered."""
    assert truth.is_crowd is not None
    new_index = np.cumsum(chosen) - 1
    mine, found = chosen[truth.image_index], rows[chosen[rows[:, 0].astype(np.int64)]]
    subset = GroundTruth(
        num_images=int(chosen.sum()),
        image_index=new_index[truth.image_index[mine]],
        boxes_xywh=truth.boxes_xywh[mine],
        labels=truth.labels[mine],
        is_crowd=truth.is_crowd[mine],
    )
    return subset, np.column_stack([new_index[found[:, 0].astype(np.int64)], found[:, 1:]])
