from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydet.data.sources.npy_yolo import NpyYoloSet
from raydet.data.sources.yolo_rows import read_class_names
from raydet.errors import DataError

ROW = "1 0.5 0.5 0.5 0.25\n"


def write(root: Path, stem: str, array: Any = None, label: str | None = ROW) -> None:
    for name in ("images", "labels"):
        (root / name).mkdir(exist_ok=True)
    array = np.zeros((8, 16, 5), np.uint8) if array is None else array
    np.save(root / "images" / f"{stem}.npy", array, allow_pickle=True)
    if label is not None:
        (root / "labels" / f"{stem}.txt").write_text(label)


def open_set(root: Path, **options: Any) -> NpyYoloSet:
    return NpyYoloSet(root, classes=("person", "car"), **options)


def test_rows_become_pixels(tmp_path: Path) -> None:
    write(tmp_path, "b", label="")
    write(tmp_path, "a", label=ROW + "\n0.0 1 1 0.5 0.5\n".replace("1 1", "0.75 0.75"))
    source = open_set(tmp_path)
    assert source.image_ids == ["a", "b"]
    target, size_hw = source.targets(0)
    assert size_hw == (8, 16)
    assert target.boxes_xyxy.tolist() == [[4, 3, 12, 5], [8, 4, 16, 8]]
    assert target.labels.tolist() == [1, 0]
    assert source.targets(1)[0].boxes_xyxy.shape == (0, 4)  # an image without objects is kept


def test_floats_come_on_the_unit_scale(tmp_path: Path) -> None:
    array = np.zeros((8, 16, 5))
    array[..., 3] = 255
    array[0, 0, :3] = 51
    write(tmp_path, "a", array)
    sample = open_set(tmp_path).read(0)
    assert sample.modalities["thermal"].dtype == torch.float32
    assert sample.modalities["thermal"].unique().tolist() == [1]
    assert sample.modalities["rgb"][:, 0, 0].tolist() == pytest.approx([0.2] * 3)


def test_bytes_stay_bytes(tmp_path: Path) -> None:
    array = np.arange(8 * 16 * 5, dtype=np.uint8).reshape(8, 16, 5)
    write(tmp_path, "a", array)
    sample = open_set(tmp_path).read(0)
    assert np.array_equal(torch.cat(list(sample.modalities.values())).permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize("value", [np.nan, 300.0, -1.0])
def test_bad_values_are_found_on_reading(tmp_path: Path, value: float) -> None:
    array = np.zeros((8, 16, 5), np.float32)
    array[3, 4, 3] = value
    write(tmp_path, "a", array)
    source = open_set(tmp_path)
    with pytest.raises(
        DataError, match=r"a\.npy: expected values in 0\.\.255, got .* in the thermal channels"
    ):
        source.read(0)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 16, 3), np.uint8), r"H x W x 5, got shape \(8, 16, 3\)"),
        (np.zeros((8, 16), np.uint8), r"H x W x 5, got shape \(8, 16\)"),
        (np.zeros((0, 16, 5), np.uint8), r"got shape \(0, 16, 5\)"),
        (np.zeros((8, 16, 5), np.int64), "got dtype int64"),
        (np.array([[[None] * 5]]), "got dtype object"),
    ],
)
def test_wrong_arrays_are_found_at_opening(tmp_path: Path, array: Any, message: str) -> None:
    write(tmp_path, "good")
    write(tmp_path, "x", array)
    with pytest.raises(DataError, match=rf"x\.npy: expected .*{message}"):
        open_set(tmp_path)


def test_bytes_and_floats_are_not_mixed(tmp_path: Path) -> None:
    """In one batch they would all become floats, those of bytes in 0..255."""
    for stem, kind in (("a", np.float32), ("b", np.uint8), ("c", np.float64)):
        write(tmp_path, stem, np.ones((8, 16, 5), kind))
    with pytest.raises(DataError, match=r"b\.npy: expected float values as in a\.npy, got uint8; write all"):
        open_set(tmp_path)
    source = open_set(tmp_path, on_bad="skip")
    assert source.image_ids == ["a", "c"]
    assert [left.name for left in source.left_out] == ["b"]
    write(tmp_path, "c", np.ones((8, 16, 5), np.uint8))
    with pytest.raises(DataError, match=r"c\.npy: .* size or type has changed since the start"):
        source.read(1)


def test_a_format_that_numpy_does_not_know_is_found_at_opening(tmp_path: Path) -> None:
    """Even where its header could be read like one of version 2."""
    write(tmp_path, "a")
    path = tmp_path / "images" / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.zeros((8, 16, 5), np.uint8), version=(2, 0))
    content = bytearray(path.read_bytes())
    content[6:8] = 9, 9
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy: expected a \.npy array, got .*of format version \(9, 9\)"):
        open_set(tmp_path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_the_formats_that_numpy_has(tmp_path: Path, version: tuple[int, int]) -> None:
    write(tmp_path, "a")
    with (tmp_path / "images" / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, np.full((8, 16, 5), 7, np.uint8), version=version)
    assert open_set(tmp_path).read(0).modalities["rgb"].unique().tolist() == [7]


@pytest.mark.parametrize("length", [-1, 0, 5, 100])
def test_a_truncated_array_is_found_at_opening(tmp_path: Path, length: int) -> None:
    write(tmp_path, "a")
    path = tmp_path / "images" / "a.npy"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"a\.npy: expected") as caught:
        open_set(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.1", "five numbers .*, got 4"),
        ("0 0.5 0.5 0.1 0.1 0.9", "five numbers .*, got 6"),
        ("0 0.5 x 0.1 0.1", "five numbers .*, got '0 0.5 x 0.1 0.1'"),
        ("-1 0.5 0.5 0.1 0.1", r"class id in 0\.\.1, got -1; .*data\.classes"),
        ("2 0.5 0.5 0.1 0.1", r"class id in 0\.\.1, got 2; .*data\.classes"),
        ("0.5 0.5 0.5 0.1 0.1", r"class id in 0\.\.1, got 0\.5"),
        ("nan 0.5 0.5 0.1 0.1", r"class id in 0\.\.1, got nan"),
        ("0 0.5 0.5 0.1 nan", "four finite numbers"),
        ("0 0.96 0.5 0.1 0.1", "leaves the image"),
        ("0 0.5 0.5 0 0.1", "above 0, got 0 x"),
        ("0 0.5 0.5 0.1 -0.1", "above 0"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    write(tmp_path, "a", label=f"{ROW}{row}\n")
    with pytest.raises(DataError, match=rf"a\.txt, row 2: .*{message}") as caught:
        open_set(tmp_path)
    assert "\n" not in str(caught.value)


def test_rounded_labels_are_clipped(tmp_path: Path) -> None:
    write(tmp_path, "a", label="0 0.0504 0.5 0.102 1.0008\n")
    assert open_set(tmp_path).targets(0)[0].boxes_xyxy[0].tolist() == pytest.approx(
        [0, 0, 1.6224, 8], abs=1e-5
    )


@pytest.mark.parametrize("name", ["images", "labels"])
def test_both_directories_are_wanted(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a")
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{name}/.* does not exist"):
        open_set(tmp_path)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "images" / "a.npy").unlink()
    with pytest.raises(DataError, match="found none"):
        open_set(tmp_path)


def test_images_without_labels_are_counted_and_named(tmp_path: Path) -> None:
    for stem in "abcdef":
        write(tmp_path, stem, label=ROW if stem == "a" else None)
    (tmp_path / "labels" / "z.txt").write_text(ROW)
    with pytest.raises(
        DataError,
        match=r"got 6 image, 2 label: 1 without image \(z\), 5 without label \(b, c, d, \.\.\.\); "
        r".*data\.source\.unlabelled=drop",
    ):
        open_set(tmp_path)


def test_drop_leaves_out_every_image_without_a_box(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b", label=None)
    write(tmp_path, "c", label="\n")
    assert open_set(tmp_path, unlabelled="drop").image_ids == ["a"]
    write(tmp_path, "a", label="")
    with pytest.raises(DataError, match="no image has a box"):
        open_set(tmp_path, unlabelled="drop")


@pytest.mark.parametrize("name", ["images", "labels"])
def test_drop_does_not_pass_over_a_linked_directory(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b", label=None)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"more is a link to"):
        open_set(tmp_path, unlabelled="drop")
    source = open_set(tmp_path, unlabelled="drop", on_bad="skip")
    assert source.image_ids == ["a"]
    assert [left.name for left in source.left_out] == ["more"]


def test_class_names(tmp_path: Path) -> None:
    assert read_class_names(tmp_path) is None
    path = tmp_path / "classes.txt"
    path.write_text("person\ncar\n\n")
    assert read_class_names(tmp_path) == ("person", "car")
    path.write_text("car\ncar\n")
    with pytest.raises(DataError, match="without repetition"):
        read_class_names(tmp_path)
