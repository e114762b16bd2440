"""KAIST's pedestrian benchmark: its files, its "reasonable" set, its miss rates by day and night.

The published figures are those of one script (github.com/sejong-rcv/INSANet, `evaluation`), which differs from what
one would expect: objects in images without any detection are left out of the count, so that a detector loses
nothing by finding nothing at all there. `miss_rates_of` gives both counts; ours is the higher one, or equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.metrics.coco import GroundTruth
from raydet.metrics.files import column, entries_of, numbers, places, places_by_id, read_json
from raydet.metrics.miss_rate import ignoring, miss_rates

MIN_HEIGHT_PX = 55.0
MOST_OCCLUSION = 1
"""0 none, 1 partial, 2 heavy."""
FRAME_XYXY = (5.0, 5.0, 635.0, 507.0)
"""Of images of 512 x 640: objects that leave it are cut off."""
PERSON = 1
NIGHT = ("set09", "set10", "set11")
"""Sequences of the test set that were taken at night; set06 to set08 are of the day."""


@dataclass(frozen=True, slots=True)
class KaistSet:
    """The test set."""

    truth: GroundTruth
    """What is not in the reasonable set is marked as crowd: it is to be ignored."""
    is_night: NDArray[np.bool_]
    """By image."""
    place_by_id: dict[object, int]


def read_annotations(path: Path) -> KaistSet:
    """The json of the benchmark: COCO's form, with `height`, `occlusion` and `ignore` of every box.

    Raises:
        DataError: the file is not as described.
    """
    tree = read_json(path)
    images, annotations = (entries_of(tree, key, where=path) for key in ("images", "annotations"))
    place_by_id = places_by_id(images, where=path)
    labels = column(annotations, "category_id", where=path)
    people = [entry for entry, label in zip(annotations, labels, strict=True) if label == PERSON]
    where = f"{path}: person"
    boxes = numbers(column(people, "bbox", where=path), (4,), where=where)
    height, occlusion, ignore = (
        numbers(column(people, key, where=path), (), where=where) for key in ("height", "occlusion", "ignore")
    )
    corners, (left, top, right, bottom) = boxes[:, :2] + boxes[:, 2:], FRAME_XYXY
    is_cut = (boxes[:, :2] < (left, top)).any(axis=1) | (corners > (right, bottom)).any(axis=1)
    is_night = np.zeros(len(images), dtype=bool)
    for image, name in zip(images, column(images, "im_name", where=path), strict=True):
        is_night[place_by_id[image["id"]]] = str(name).startswith(NIGHT)
    truth = GroundTruth(
        num_images=len(images),
        image_index=places(column(people, "image_id", where=path), place_by_id, where=where),
        boxes_xywh=boxes,
        labels=np.zeros(len(people), dtype=np.int64),
        is_crowd=(ignore > 0) | (height < MIN_HEIGHT_PX) | (occlusion > MOST_OCCLUSION) | is_cut,
    )
    return KaistSet(truth, is_night, dict(place_by_id))


def read_detections(path: Path, kaist: KaistSet) -> NDArray[np.float64]:
    """Lines of `image,x,y,width,height,score`, the number of the image being its id + 1, as rows for `miss_rates`.

    Raises:
        DataError: a line is not as described.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: wanted lines of detections, {error}") from error
    cells = [(number, line.split(",")) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = np.zeros((len(cells), 7))
    for row, (number, line) in zip(rows, cells, strict=True):
        try:
            image, *values = map(float, line)
            row[1:6] = values
        except ValueError:
            raise DataError(
                f"{path}: line {number} wants 6 numbers: image,x,y,width,height,score; got {','.join(line)!r}"
            ) from None
        if image - 1 not in kaist.place_by_id or not np.isfinite(row).all():
            raise DataError(
                f"{path}: line {number} wants finite numbers and an image from 1 to {len(kaist.place_by_id)}, "
                f"got {','.join(line)!r}"
            )
        row[0] = kaist.place_by_id[image - 1]
    return rows


def miss_rates_of(
    kaist: KaistSet, rows: NDArray[np.float64], *, as_published: bool
) -> dict[str, float | None]:
    """Log-average miss rate of all images, of those of the day, and of those of the night, in 0..1.

    Args:
        as_published: leave out objects in images without detections, see above.
    """
    every = np.ones(kaist.truth.num_images, dtype=bool)
    rates = {}
    for name, chosen in (("all", every), ("day", ~kaist.is_night), ("night", kaist.is_night)):
        truth, found = _only(kaist.truth, rows, chosen)
        if as_published:
            is_unseen = ~np.isin(truth.image_index, found[:, 0])
            truth = ignoring(truth, is_unseen)
        rate = miss_rates(truth, found, 1)[0]
        rates[name] = None if np.isnan(rate) else float(rate)
    return rates


def _only(
    truth: GroundTruth, rows: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[GroundTruth, NDArray[np.float64]]:
    """Some of the images."""
    assert truth.is_crowd is not None
    place = np.cumsum(chosen) - 1
    mine, found = chosen[truth.image_index], rows[chosen[rows[:, 0].astype(np.int64)]]
    return (
        GroundTruth(
            num_images=int(chosen.sum()),
            image_index=place[truth.image_index[mine]],
            boxes_xywh=truth.boxes_xywh[mine],
            labels=truth.labels[mine],
            is_crowd=truth.is_crowd[mine],
        ),
        np.column_stack([place[found[:, 0].astype(np.int64)], found[:, 1:]]),
    )
