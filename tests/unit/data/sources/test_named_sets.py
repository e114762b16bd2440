"""What is particular to voc, flir and kaist; what they share is in the contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydet.data.sources.flir import FlirSet
from raydet.data.sources.kaist import KaistSet
from raydet.data.sources.voc import VocSet
from raydet.errors import DataError


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(path, format="PNG")


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def xml(*objects: tuple[str, str]) -> str:
    """From names and the inside of their boxes."""
    inner = "".join(f"<object><name>{n}</name><bndbox>{b}</bndbox></object>" for n, b in objects)
    return f"<annotation><size><width>0</width><height>0</height></size>{inner}</annotation>"


BOX = "<xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for stem in ("010001", "020001"):
        for name in ("visible", "infrared"):
            image(tmp_path / name / "train" / f"{stem}.jpg")
        text(tmp_path / "Annotations" / f"{stem}.xml", xml(("person", BOX), ("dog", BOX)))
    return tmp_path


def test_voc_counts_pixels_from_1(voc: Path) -> None:
    assert VocSet(voc).targets(0)[0].boxes_xyxy[0].tolist() == [0, 0, 40, 20]
    assert VocSet(voc, first_pixel=0).targets(0)[0].boxes_xyxy[0].tolist() == [1, 1, 40, 20]


def test_voc_learns_its_classes(voc: Path) -> None:
    assert VocSet(voc).classes == ("dog", "person")
    assert VocSet(voc, ignore=("dog",)).classes == ("person",)
    assert VocSet(voc, ignore=("dog",)).targets(0)[0].labels.tolist() == [0]
    (voc / "classes.txt").write_text("person\ndog\n")
    assert VocSet(voc).targets(0)[0].labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"010001\.xml, object 2: expected a class .*\(person\), got 'dog'"):
        VocSet(voc, classes=("person",))
    with pytest.raises(
        DataError, match=r"expected objects that name the classes, found none; .*classes\.txt"
    ):
        (voc / "classes.txt").unlink() or VocSet(voc, ignore=("dog", "person"))  # type: ignore[func-returns-value]


def test_voc_names_may_say_the_place(voc: Path) -> None:
    assert VocSet(voc).group_ids == ["", ""]
    assert VocSet(voc, group_prefix=2).group_ids == ["01", "02"]


@pytest.fixture
def flir(tmp_path: Path) -> Path:
    for stem in ("FLIR_00001", "FLIR_00002"):
        image(tmp_path / "JPEGImages" / f"{stem}_RGB.jpg")
        image(tmp_path / "JPEGImages" / f"{stem}_PreviewData.jpeg")
        text(tmp_path / "Annotations" / f"{stem}_PreviewData.xml", xml(("person", BOX), ("dog", BOX)))
    image(tmp_path / "JPEGImages" / "FLIR_00003_RGB.jpg")
    text(tmp_path / "align_train.txt", "FLIR_00002_PreviewData\nFLIR_00001\n")
    return tmp_path


def test_flir_takes_a_part(flir: Path) -> None:
    source = FlirSet(flir, subset="align_train.txt")
    assert (source.image_ids, source.classes) == (["FLIR_00001", "FLIR_00002"], ("person",))
    with pytest.raises(
        DataError, match=r"1 without thermal \(FLIR_00003\), 1 without annotation \(FLIR_00003\)"
    ):
        FlirSet(flir)
    assert [left.name for left in FlirSet(flir, on_bad="skip").left_out] == ["FLIR_00003"]


@pytest.mark.parametrize("name", ["JPEGImages", "Annotations"])
def test_flir_does_not_pass_over_a_linked_directory(flir: Path, name: str) -> None:
    (flir / "JPEGImages" / "FLIR_00003_RGB.jpg").unlink()
    assert len(FlirSet(flir)) == 2
    (flir / "elsewhere").mkdir()
    (flir / name / "more").symlink_to(flir / "elsewhere")
    with pytest.raises(DataError, match=r"more is a link to"):
        FlirSet(flir)
    assert [left.name for left in FlirSet(flir, on_bad="skip").left_out] == ["more"]


ROWS = """% bbGt version=3
person 1 2 10 12 0 0 0 0 0 0 0
people 1 2 10 12 0 0 0 0 0 0 0
cyclist 1 2 10 12 0 0 0 0 0 0 0
person? 1 2 10 12 0 0 0 0 0 0 0
person 1 2 10 12 0 0 0 0 0 1 0
"""


@pytest.fixture
def kaist(tmp_path: Path) -> Path:
    for place in ("set00/V000", "set06/V002"):
        for name in ("visible", "lwir"):
            image(tmp_path / place / name / "I00000.jpg")
        text(tmp_path / "annotations" / place / "I00000.txt", ROWS)
    return tmp_path


def test_kaist_leaves_out_what_its_evaluation_ignores(kaist: Path) -> None:
    source = KaistSet(kaist)
    assert source.image_ids == ["set00_V000_I00000", "set06_V002_I00000"]
    assert source.group_ids == ["set00/V000", "set06/V002"]
    target, _ = source.targets(0)
    assert source.classes == ("person",)
    assert (target.labels.tolist(), target.boxes_xyxy.tolist()) == ([0], [[1, 2, 11, 14]])
    with_cyclists = KaistSet(kaist, ignore=("people", "person?"))
    assert with_cyclists.classes == ("cyclist", "person")
    assert with_cyclists.targets(0)[0].labels.tolist() == [1, 0]


def test_kaist_takes_a_part(kaist: Path) -> None:
    text(kaist / "test.txt", "set06/V002/I00000\n")
    assert KaistSet(kaist, subset="test.txt").image_ids == ["set06_V002_I00000"]


def test_kaist_endings_may_be_large(kaist: Path) -> None:
    path = kaist / "annotations" / "set00" / "V000" / "I00000.txt"
    box = "<x>1</x><y>2</y><w>10</w><h>12</h>"
    path.with_suffix(".XML").write_text(xml(("person", box)))
    path.unlink()
    assert KaistSet(kaist).targets(0)[0].boxes_xyxy.tolist() == [[1, 2, 11, 14]]


@pytest.mark.parametrize("row", ["person 1 2 10", "person", "person a b c d", "person 1 2 3 4 0 0 0 0 0 x 0"])
def test_a_kaist_row_that_is_none(kaist: Path, row: str) -> None:
    text(kaist / "annotations" / "set06" / "V002" / "I00000.txt", f"% bbGt version=3\n{row}\n")
    with pytest.raises(DataError, match=r"I00000\.txt, row 2: expected `name x y w h \.\.\.`, got"):
        KaistSet(kaist)


def test_what_is_no_kaist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the directories set00"):
        KaistSet(tmp_path)
