"""Boxes of recordings as structured .npy arrays: `_bbox.npy` (Gen1, 1 Mpx, eTraM) and `tracks.npy` (DSEC-Detection).

Older files call the time `ts` and the confidence `confidence`, newer ones `t` and `class_confidence`. Confidence and
track are optional.

Legend: N boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.files.arrays import read_array_header
from raydet.files.events.recording import Ints, read_words
from raydet.files.text import one_line

TIME = ("t", "ts")
CORNER = ("x", "y", "w", "h")
MAX_ROWS = 10**8


@dataclass(frozen=True, slots=True)
class TimedBoxes:
    """Boxes in the order of time."""

    t_us: Ints
    """int64 [N], microseconds."""
    boxes_xyxy: NDArray[np.float64]
    """float64 [N, 4] in pixels of the sensor; may leave it, and may be empty."""
    class_ids: Ints
    """int64 [N], as in the file."""

    def where(self, is_kept_N: NDArray[np.bool_]) -> TimedBoxes:
        """Some of the boxes."""
        return TimedBoxes(self.t_us[is_kept_N], self.boxes_xyxy[is_kept_N], self.class_ids[is_kept_N])


def read_timed_boxes(path: Path) -> TimedBoxes:
    """The boxes of a file; those of one time keep their order.

    Raises:
        DataError: the file is no such array, or a value is impossible.
    """
    header = read_array_header(path)
    names = header.dtype.names or ()
    time = next((name for name in TIME if name in names), "t")
    kinds = {time: "iu", **dict.fromkeys(CORNER, "iuf"), "class_id": "iu"}
    missing = [name for name in kinds if name not in names]
    if missing or len(header.shape) != 1 or header.dtype.hasobject:
        raise DataError(
            f"{path}: expected an array of boxes with the fields t (or ts), x, y, w, h, class_id, got "
            f"{one_line(header.dtype)} {one_line(header.shape)}; convert it"
        )
    for name, kind in kinds.items():
        if header.dtype[name].kind not in kind or header.dtype[name].shape:
            raise DataError(
                f"{path}: expected numbers as {name}, got {one_line(header.dtype[name])}; convert them"
            )
    header.check_complete(path)
    if header.shape[0] > MAX_ROWS:
        raise DataError(
            f"{path}: expected at most {MAX_ROWS} boxes, got {header.shape[0]}; split the recording"
        )
    rows: NDArray[Any] = read_words(path, f"V{header.dtype.itemsize}", header.start, header.shape[0])
    rows = rows.view(header.dtype)
    times_N = _integers(rows[time], time, path)
    x, y, w, h = (rows[name].astype(np.float64) for name in CORNER)
    boxes_xyxy = np.stack([x, y, x + w, y + h], axis=1)
    bad = np.flatnonzero(~np.isfinite(boxes_xyxy).all(axis=1))
    if len(bad):
        raise DataError(f"{path}, row {bad[0]}: a box must have four finite numbers; correct or delete it")
    order = np.argsort(times_N, kind="stable")
    return TimedBoxes(times_N[order], boxes_xyxy[order], _integers(rows["class_id"], "class_id", path)[order])


def _integers(values_N: NDArray[Any], name: str, path: Path) -> Ints:
    if len(values_N) and not (int(values_N.min()) >= 0 and int(values_N.max()) < 2**62):
        raise DataError(
            f"{path}: expected {name} from 0 on, got {values_N.min()}..{values_N.max()}; correct the rows"
        )
    return values_N.astype(np.int64)
