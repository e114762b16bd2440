from __future__ import annotations

from pathlib import Path

import pytest

from raydet.data.sources.yolo_rows import Rows, read_rows
from raydet.errors import DataError


def rows_of(tmp_path: Path, text: str) -> Rows:
    path = tmp_path / "a.txt"
    path.write_text(text)
    rows = read_rows(path, num_classes=2, size_hw=(100, 200))
    return Rows(
        [tuple(round(value, 6) for value in box) for box in rows.boxes], rows.labels, rows.num_outlines
    )


@pytest.mark.parametrize(
    "outline",
    [
        "0.1 0.2 0.3 0.2 0.2 0.6",
        "0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6",
        "0.2 0.2 0.3 0.4 0.25 0.6 0.15 0.5 0.1 0.3",
    ],
)
def test_the_box_of_an_outline_is_the_smallest_around_it(tmp_path: Path, outline: str) -> None:
    found = rows_of(tmp_path, f"1 {outline}\n0 0.2 0.4 0.2 0.4\n")
    assert found == ([(20, 20, 60, 60)] * 2, [1, 0], 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.2 0.2 0.9", r"got 6 \(with a confidence, as detections have\?\)"),
        ("0 0.5 0.5 0.2", "three or more points, got 4"),
        ("0 0.1 0.2 0.3 0.2 0.2 0.6 0.7", "three or more points, got 8"),
        ("0 0.1 0.2 0.3 0.2 0.2 nan", "four finite numbers"),
        ("0 0.1 0.2 0.3 0.2 0.2 1.6", "the box leaves the image"),
        ("0 0.1 0.2 0.3 0.2 0.2 0.2", "a width and a height above 0"),
        ("2 0.1 0.2 0.3 0.2 0.2 0.6", r"a class id in 0\.\.1, got 2"),
    ],
)
def test_what_is_no_row(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.txt, row 1: .*{message}"):
        rows_of(tmp_path, row)
