from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydet.data.sources.coco import CocoSet
from raydet.errors import DataError

Tree = dict[str, list[dict[str, Any]]]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two images, 20 x 10 pixels; the categories' ids have a gap."""
    rng = np.random.RandomState(0)
    for number in (1, 2):
        Image.fromarray(rng.randint(0, 256, (10, 20, 3)).astype(np.uint8)).save(tmp_path / f"v{number}.jpg")
        Image.fromarray(rng.randint(0, 256, (10, 20)).astype(np.uint8)).save(tmp_path / f"t{number}.png")
    return {
        "categories": [{"id": 7, "name": "car"}, {"id": 2, "name": "person"}],
        "images": [{"id": n, "visible": f"v{n}.jpg", "thermal": f"t{n}.png"} for n in (1, 2)],
        "annotations": [{"id": 5, "image_id": 2, "category_id": 7, "bbox": [1, 2, 3, 4]}],
    }


def write(tree: Any, root: Path) -> Path:
    path = root / "set.json"
    path.write_text(json.dumps(tree))
    return path


def test_labels_follow_the_ids(tree: Tree, tmp_path: Path) -> None:
    source = CocoSet(write(tree, tmp_path))
    assert source.classes == ("person", "car")
    assert source.modalities == ("rgb", "thermal")
    assert source.image_ids == ["1", "2"]
    assert source.targets(0)[0].boxes_xyxy.shape == (0, 4)
    target, size_hw = source.targets(1)
    assert (target.boxes_xyxy.tolist(), target.labels.tolist(), size_hw) == ([[1, 2, 4, 6]], [1], (10, 20))
    assert {name: tuple(x.shape) for name, x in source.read(1).modalities.items()} == {
        "rgb": (3, 10, 20),
        "thermal": (1, 10, 20),
    }


def test_crowds_are_left_out(tree: Tree, tmp_path: Path) -> None:
    tree["annotations"][0]["iscrowd"] = 1
    assert len(CocoSet(write(tree, tmp_path)).targets(1)[0].labels) == 0


@pytest.mark.parametrize(
    ("image_id", "annotated"), [(2, 2.0), (2.0, "2"), ("2", 2), ("a 2", "a 2"), ("002", "002")]
)
def test_ids_are_compared_by_value(tree: Tree, tmp_path: Path, image_id: object, annotated: object) -> None:
    tree["images"][1]["id"] = image_id
    tree["annotations"][0] |= {"image_id": annotated, "category_id": "7"}
    source = CocoSet(write(tree, tmp_path))
    assert source.targets(1)[0].labels.tolist() == [1]
    assert source.image_ids == ["1", str(image_id).removesuffix(".0")]


def test_text_is_told_from_numbers_in_messages(tree: Tree, tmp_path: Path) -> None:
    tree["annotations"][0]["category_id"] = "9"
    with pytest.raises(DataError, match=r"from 'categories' \(2, 7\), got '9'; correct it"):
        CocoSet(write(tree, tmp_path))
    tree["annotations"][0]["category_id"] = "car"
    with pytest.raises(DataError, match=r"from 'categories' \(2, 7\), got 'car'"):
        CocoSet(write(tree, tmp_path))
    tree["images"][0]["id"] = 1.5
    with pytest.raises(DataError, match=r"expected an id \(an integer or a string\), got 1\.5"):
        CocoSet(write(tree, tmp_path))


def test_annotations_of_no_image_are_counted_as_annotations(tree: Tree, tmp_path: Path) -> None:
    tree["annotations"] += [{"id": n, "image_id": n, "category_id": 7, "bbox": [1, 2, 3, 4]} for n in (8, 9)]
    with pytest.raises(DataError, match="annotation 8: expected an image_id from 'images', got 8"):
        CocoSet(write(tree, tmp_path))
    found = CocoSet(write(tree, tmp_path), on_bad="skip")
    assert [(item.kind, item.name.rpartition(" ")[2]) for item in found.left_out] == [
        ("annotation", "8"),
        ("annotation", "9"),
    ]


def test_a_category_that_only_groups_others_is_no_class(tree: Tree, tmp_path: Path) -> None:
    """Some tools write the name of the whole set as a category of its own, even under the name of its only member."""
    for category in tree["categories"]:
        category["supercategory"] = "street"
    tree["categories"].insert(0, {"id": 0, "name": "street", "supercategory": "none"})
    source = CocoSet(write(tree, tmp_path))
    assert source.classes == ("person", "car")
    assert source.notes == ("the category 'street' only groups others and has no annotation: it is no class",)
    tree["categories"] = [
        {"id": 0, "name": "car", "supercategory": "none"},
        {"id": 7, "name": "car", "supercategory": "car"},
    ]
    assert CocoSet(write(tree, tmp_path)).classes == ("car",)


def test_a_category_without_a_name_is_refused(tree: Tree, tmp_path: Path) -> None:
    tree["categories"].append({"id": 9})
    with pytest.raises(DataError, match="expected categories with unique ids and unique names"):
        CocoSet(write(tree, tmp_path))


@pytest.mark.parametrize(
    ("flag", "expected"), [("0", 1), ("false", 1), (0.0, 1), (None, 1), ("1", 0), (True, 0)]
)
def test_flags_by_value(tree: Tree, tmp_path: Path, flag: object, expected: int) -> None:
    tree["annotations"][0]["iscrowd"] = flag
    assert len(CocoSet(write(tree, tmp_path)).targets(1)[0].labels) == expected


@pytest.mark.parametrize("flag", ["no", 2, [1]])
def test_flags_that_are_none(tree: Tree, tmp_path: Path, flag: object) -> None:
    tree["annotations"][0]["ignore"] = flag
    with pytest.raises(DataError, match=r"annotation 5: expected ignore 0 or 1, got"):
        CocoSet(write(tree, tmp_path))


def test_a_category_that_is_annotated_is_a_class(tree: Tree, tmp_path: Path) -> None:
    tree["categories"][1]["supercategory"] = "car"
    assert CocoSet(write(tree, tmp_path)).classes == ("person", "car")
    tree["categories"][0]["supercategory"] = "car"
    tree["categories"][1]["supercategory"] = "person"
    assert CocoSet(write(tree, tmp_path)).classes == ("person", "car")  # its own supercategory, as in COCO


def test_a_subset_of_the_categories(tree: Tree, tmp_path: Path) -> None:
    tree["annotations"].append({"id": 6, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]})
    source = CocoSet(write(tree, tmp_path), classes=("car",), leaves_out_others=True)
    assert (source.classes, source.category_ids) == (("car",), (7,))
    assert [source.targets(index)[0].labels.tolist() for index in (0, 1)] == [[], [0]]
    assert source.ignored == {"category person": 1}
    with pytest.raises(DataError, match=r"to be categories \(person, car\), got cat"):
        CocoSet(write(tree, tmp_path), classes=("cat",), leaves_out_others=True)


def test_classes_of_which_the_set_lacks_some(tree: Tree, tmp_path: Path) -> None:
    """Those of a trained run; every one has a category id of its own."""
    source = CocoSet(write(tree, tmp_path), classes=("bike", "car", "person"))
    assert source.targets(1)[0].labels.tolist() == [1]
    assert source.category_ids == (0, 7, 2)
    tree["categories"] = [{"id": 0, "name": "all"}, {"id": 7, "name": "car", "supercategory": "all"}]
    assert CocoSet(write(tree, tmp_path), classes=("car", "bike")).category_ids == (7, 1)


@pytest.mark.parametrize(
    "change", [{"annotations": []}, {"annotations": None}, {"categories": None}, {"none": 1}]
)
def test_images_without_annotations(tree: Tree, tmp_path: Path, change: dict[str, Any]) -> None:
    bare = {"images": tree["images"], **change}
    source = CocoSet(write(bare, tmp_path), classes=("car", "person"), is_labelled=False)
    assert len(source) == 2
    assert source.targets(1)[0].labels.tolist() == []
    with pytest.raises(
        DataError, match=r"expected (a list of objects under '(annotations|categories)'|categories)"
    ):
        CocoSet(write(bare, tmp_path))


def test_files_named_as_on_windows(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "visible").mkdir()
    for number in (1, 2):
        (tmp_path / f"v{number}.jpg").rename(tmp_path / "visible" / f"v{number}.jpg")
        tree["images"][number - 1]["visible"] = f"visible\\v{number}.jpg"
    assert len(CocoSet(write(tree, tmp_path))) == 2
    for name, message in (
        ("D:\\data\\v1.jpg", "got an absolute path of Windows, "),
        ("\\\\server\\v1.jpg", "got an absolute path of Windows, "),
        ("\\etc\\passwd", "got an absolute path of Windows, "),
        ("a\\" + "b" * 300, "does not exist|cannot be read"),
        ("visible\\..\\..\\v1.jpg", "expected a path below"),
    ):
        tree["images"][0]["visible"] = name
        with pytest.raises(DataError, match=message):
            CocoSet(write(tree, tmp_path))


@pytest.mark.parametrize("key", ["group_id", "video_id", "sequence"])
def test_groups_come_from_the_images(tree: Tree, tmp_path: Path, key: str) -> None:
    tree["images"][1][key] = 0
    assert CocoSet(write(tree, tmp_path)).group_ids == ["", "0"]


def test_images_may_lie_elsewhere(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "jsons").mkdir()
    path = write(tree, tmp_path / "jsons")
    assert CocoSet(path, root=tmp_path).read(0).source_hw == (10, 20)
    with pytest.raises(DataError, match=r"image 1: .*v1\.jpg does not exist"):
        CocoSet(path)


def test_grey_stored_as_colour_is_one_channel(tree: Tree, tmp_path: Path) -> None:
    grey = np.array(Image.open(tmp_path / "t1.png"))
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "t1.png")
    sample = CocoSet(write(tree, tmp_path)).read(0)
    assert np.array_equal(sample.modalities["thermal"][0].numpy(), grey)


def test_false_colours_are_refused(tree: Tree, tmp_path: Path) -> None:
    tree["images"][0]["thermal"] = "v1.jpg"
    with pytest.raises(DataError, match="got colours"):
        CocoSet(write(tree, tmp_path)).read(0)


def test_16_bits_want_a_range(tree: Tree, tmp_path: Path) -> None:
    for number in (1, 2):
        counts = np.arange(7000, 7200, dtype=np.uint16).reshape(10, 20)
        Image.fromarray(counts).save(tmp_path / f"t{number}.png")
    path = write(tree, tmp_path)
    with pytest.raises(
        DataError, match=r"t1\.png: expected 8 bits .* values 7000\.\.7199; set thermal_range"
    ):
        CocoSet(path)
    thermal = CocoSet(path, thermal_range=(7000, 7100)).read(0).modalities["thermal"]
    assert (thermal.dtype, tuple(thermal.shape)) == (torch.float32, (1, 10, 20))
    assert thermal.flatten()[[0, 50, 100, 199]].tolist() == [0, 0.5, 1, 1]
    tree["images"][0]["thermal"] = "v1.jpg"
    with pytest.raises(
        DataError, match=r"v1\.jpg: expected more than 8 bits because data.source.thermal_range is set"
    ):
        CocoSet(write(tree, tmp_path), thermal_range=(7000, 7100))


@pytest.mark.parametrize("name", ["v1.jpg", "t1.png"])
def test_a_truncated_image_is_found_on_reading(tree: Tree, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-40])
    source = CocoSet(write(tree, tmp_path))
    with pytest.raises(DataError, match=rf"{name}: the image is truncated or damaged"):
        source.read(0)


def test_the_modalities_of_an_image_have_one_size(tree: Tree, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 20), np.uint8)).save(tmp_path / "t2.png")
    with pytest.raises(DataError, match=r"image 2: expected one size .* rgb 20 x 10, thermal 20 x 5"):
        CocoSet(write(tree, tmp_path))


BAD: dict[str, tuple[Callable[[Tree], Any], str]] = {
    "size in the json": (lambda t: t["images"][0].update(width=10, height=10), "the annotation 10 x 10"),
    "no modality key": (
        lambda t: t.update(images=[{"id": 1, "file_name": "v1.jpg"}]),
        "image 1: expected a file under .* keys id, file_name",
    ),
    "one modality less": (lambda t: t["images"][1].pop("thermal"), "image 2: expected a thermal file"),
    "a path upwards": (lambda t: t["images"][0].update(visible="x/../../v1.jpg"), "expected a path below"),
    "an absolute path": (lambda t: t["images"][0].update(visible="/etc/passwd"), "expected a path below"),
    "not an image": (lambda t: t["images"][0].update(visible="set.json"), "is not an image"),
    "no id": (lambda t: t["images"][0].pop("id"), "expected an id"),
    "an image twice": (lambda t: t["images"][1].update(id=1), "image ids must be unique, got 1 twice"),
    "an annotation twice": (lambda t: t["annotations"].append(t["annotations"][0]), "annotation 5: .* twice"),
    "a category twice": (lambda t: t["categories"][0].update(id=2), "categories with unique ids"),
    "a name twice": (lambda t: t["categories"][0].update(name="person"), "unique names"),
    "no categories": (lambda t: t.update(categories=[]), "expected categories"),
    "no images": (lambda t: t.update(images=[]), "expected images, found none"),
    "no list": (lambda t: t.pop("annotations"), "list of objects under 'annotations'"),
    "unknown image": (lambda t: t["annotations"][0].update(image_id=9), "annotation 5: .*image_id .*got 9"),
    "unknown category": (
        lambda t: t["annotations"][0].update(category_id=1),
        r"annotation 5: .*category_id .*\(2, 7\), got 1",
    ),
    "half a box": (
        lambda t: t["annotations"][0].update(bbox=[1, 2]),
        r"annotation 5: expected bbox .*got \[1, 2\]",
    ),
    "an empty box": (lambda t: t["annotations"][0].update(bbox=[1, 2, 0, 4]), "annotation 5: .*above 0"),
    "outside": (lambda t: t["annotations"][0].update(bbox=[1, 2, 30, 4]), "annotation 5: the box leaves"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_found_at_opening(tree: Tree, tmp_path: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(tree)
    with pytest.raises(DataError, match=message) as caught:
        CocoSet(write(tree, tmp_path))
    assert "set.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", "null"])
def test_a_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"set\.json"):
        CocoSet(path)


def test_an_absent_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        CocoSet(tmp_path / "set.json")
