from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydet.errors import DataError
from raydet.files.events.boxes_npy import read_timed_boxes

OLD = [
    ("ts", "<u8"), ("x", "<f4"), ("y", "<f4"), ("w", "<f4"), ("h", "<f4"), ("class_id", "u1"), ("confidence", "<f4"),
    ("track_id", "<u4"),
]  # fmt: skip
NEW = [
    ("t", "<i8"), ("x", "<f4"), ("y", "<f4"), ("w", "<f4"), ("h", "<f4"), ("class_id", "<u4"), ("track_id", "<u4"),
    ("class_confidence", "<f4"),
]  # fmt: skip
DSEC = [
    ("t", "<u8"), ("x", "<f8"), ("y", "<f8"), ("h", "<f8"), ("w", "<f8"), ("class_id", "u1"),
    ("class_confidence", "<f8"), ("track_id", "<u8"),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [OLD, NEW, DSEC], ids=["gen1", "1mpx", "dsec"])
def test_every_generation_of_names(dtype: list[tuple[str, str]], tmp_path: Path) -> None:
    rows = np.zeros(3, dtype)
    rows[dtype[0][0]] = 300_000, 100_000, 300_000
    rows["x"], rows["y"], rows["w"], rows["h"] = (-4, 5, 6), (1, 2, 3), (10, 20, 30), (7, 8, 9)
    rows["class_id"] = 2, 0, 1
    np.save(tmp_path / "a_bbox.npy", rows)
    found = read_timed_boxes(tmp_path / "a_bbox.npy")
    assert found.t_us.tolist() == [100_000, 300_000, 300_000]
    assert found.boxes_xyxy.tolist() == [[5, 2, 25, 10], [-4, 1, 6, 8], [6, 3, 36, 12]]
    assert found.class_ids.tolist() == [0, 2, 1]


def test_no_boxes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(0, NEW))
    assert read_timed_boxes(tmp_path / "a.npy").boxes_xyxy.shape == (0, 4)


def with_value(name: str, value: float) -> np.ndarray:
    rows = np.zeros(2, [(field, "<f8" if field == name == "x" else kind) for field, kind in NEW])
    rows[name][1] = value
    return rows


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5)), r"expected an array of boxes with the fields t \(or ts\), x, y, w, h, class_id, got"),
        (np.zeros(3, NEW[1:]), r"expected an array of boxes with the fields t \(or ts\)"),
        (np.zeros(3, [*OLD[:5], ("class_id", "U3")]), r"expected numbers as class_id, got <U3"),
        (np.zeros(3, [("t", "<f8"), *NEW[1:]]), r"expected numbers as t, got float64"),
        (with_value("x", np.nan), r"a\.npy, row 1: a box must have four finite numbers"),
        (with_value("t", -1), r"expected t from 0 on, got -1\.\.0"),
    ],
)  # fmt: skip
def test_what_are_no_boxes(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=message):
        read_timed_boxes(tmp_path / "a.npy")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    rows = np.zeros(1, [*NEW, ("more", object)])
    np.save(tmp_path / "a.npy", rows, allow_pickle=True)
    with pytest.raises(DataError, match="expected an array of boxes"):
        read_timed_boxes(tmp_path / "a.npy")


def test_a_file_that_is_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(9, NEW))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-5])
    with pytest.raises(DataError, match="it is truncated or damaged, copy it again"):
        read_timed_boxes(tmp_path / "a.npy")
