"""`classes.yaml`: what it means, what is refused, and SegHiero's YAML."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from raydet.cli import main
from raydet.config import Level, SegmentationTask
from raydet.errors import DataError
from raydet.files.classes import built_in_tables, imported, read_classes

GOOD = """
classes:
  - {id: 7, name: void, ignore: true}
  - {id: [26, 27], name: car, parent: vehicle, color: [0, 0, 142]}
  - {id: 0, name: road, parent: flat, color: [128, 64, 128]}
  - {id: 3, name: walk, parent: flat}
ignore: [255]
groups:
  - {name: vehicle, parent: movable}
  - {name: flat, parent: ground}
levels: [category, realm]
"""
SEGHIERO = """
dataset: {root: /data}
classes:
  fine_names: [sunflower, lily, rose, tulip, juniper, oak, palm, bermuda, lions mane]
  coarse_names: [flower, tree, grass, mushroom]
  coarse_to_fine_map: [[0, 3], [4, 6], [7], [8]]
  super_coarse_names: [plant, fungus]
  super_coarse_to_coarse_map: [[0, 2], [3]]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    return path


def test_classes_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    table = read_classes(written(tmp_path, GOOD))
    assert table.classes == ("road", "walk", "car")
    assert table.labels == {0: 0, 3: 1, 26: 2, 27: 2, 7: "ignored", 255: "ignored"}
    assert table.colours == ((128, 64, 128), None, (0, 0, 142))
    assert table.label_of_colour() == {(128, 64, 128): 0, (0, 0, 142): 2}
    assert table.levels == (
        Level(name="category", groups=("flat", "vehicle"), parents=(0, 0, 1)),
        Level(name="realm", groups=("ground", "movable"), parents=(0, 1)),
    )


def test_groups_need_no_list_and_levels_no_names(tmp_path: Path) -> None:
    table = read_classes(
        written(tmp_path, "classes: [{id: 0, name: sky, parent: sky}, {id: 1, name: a, parent: b}]")
    )
    assert table.levels == (Level(name="level_1", groups=("sky", "b"), parents=(0, 1)),)
    flat = read_classes(written(tmp_path, "classes: [{id: 5, name: a}, {id: 1, name: b}]"))
    assert (flat.classes, flat.levels) == (("b", "a"), ())


def test_anomalies_are_no_class(tmp_path: Path) -> None:
    text = """
classes:
  - {id: 3, name: a, parent: x, color: [1, 1, 1]}
  - {id: 1, name: odd, anomaly: true, color: [2, 2, 2]}
  - {id: [4, 5], name: strange, anomaly: true}
"""
    table = read_classes(written(tmp_path, text))
    assert table.classes == ("a",)
    assert table.labels == {3: 0, 1: "anomaly", 4: "anomaly", 5: "anomaly"}
    assert table.label_of_colour() == {(1, 1, 1): 0, (2, 2, 2): "anomaly"}
    assert table.colours == ((1, 1, 1),)
    assert table.levels[0].groups == ("x",)
    assert table.in_order(("b", "a")).labels == {3: 1, 1: "anomaly", 4: "anomaly", 5: "anomaly"}


def test_another_order_of_the_classes(tmp_path: Path) -> None:
    table = read_classes(written(tmp_path, GOOD))
    other = table.in_order(("car", "walk", "road"))
    assert other.labels == {0: 2, 3: 1, 26: 0, 27: 0, 7: "ignored", 255: "ignored"}
    assert other.levels[0].parents == (1, 0, 0)
    assert other.colours == ((0, 0, 142), None, (128, 64, 128))
    more = table.in_order(("tree", "road", "walk", "car"))
    assert (more.labels[0], more.levels) == (1, ())
    with pytest.raises(
        DataError, match=r"expected a class of data\.classes \(road, walk\), got 'car'; correct"
    ):
        table.in_order(("road", "walk"))


CLASSES = "classes: [{id: 0, name: a, parent: x}, {id: 1, name: b, parent: y}]\n"

REFUSED = {
    "cycle": (
        CLASSES + "groups: [{name: x, parent: z}, {name: z, parent: x}, {name: y, parent: z}]",
        r"group 'x': the parents form a cycle, x -> z -> x; correct one",
    ),
    "gap: a class without a parent": (
        "classes: [{id: 0, name: a, parent: x}, {id: 1, name: b}]",
        r"class 'b': expected 1 group above it, as above 'a', got 0; give the class a parent",
    ),
    "gap: a parent that is not defined": (
        CLASSES + "groups: [{name: x, parent: z}]",
        r"class 'b': expected 2 groups above it, as above 'a', got 1; give the group 'y' a parent",
    ),
    "orphan": (
        CLASSES + "groups: [{name: w, parent: x}]",
        r"group 'w': no class belongs to it; delete it",
    ),
    "overlap": (
        CLASSES + "groups: [{name: x, parent: z}, {name: x, parent: y}]",
        r"group 'x': given twice, below z and y; a group has one place",
    ),
    "id given twice": (
        "classes: [{id: 0, name: a}, {id: [2, 0], name: b}]",
        r"class 'b': id 0 is that of 'a', too",
    ),
    "ignore value that is a class": (
        "classes: [{id: 0, name: a}, {id: 0, name: void, ignore: true}]",
        r"class 'a': id 0 is ignored and a class, too; choose one",
    ),
    "ignored number that is a class": (
        "classes: [{id: 0, name: a}, {id: 255, name: b}]\nignore: [255]",
        r"class 'b': id 255 is ignored and a class, too",
    ),
    "name given twice": (
        "classes: [{id: 0, name: a}, {id: 1, name: a}]",
        r"class 'a': expected different names, got it twice; .* merge them: id: \[1, 2\]",
    ),
    "no id": ("classes: [{name: a}]", r"class 'a': expected an id in 0..65535, got None"),
    "empty id": ("classes: [{id: [], name: a}]", r"class 'a': expected an id, or a list of them, got none"),
    "id of a text": ("classes: [{id: '1', name: a}]", r"class 'a': expected an id in 0..65535, got '1'"),
    "id too large": ("classes: [{id: 65536, name: a}]", r"expected an id in 0..65535, got 65536"),
    "bool for an id": ("classes: [{id: true, name: a}]", r"expected an id in 0..65535, got True"),
    "name of a number": ("classes: [{id: 1, name: 7}]", r"id 1: expected a name, got 7; put it in quotes"),
    "name that YAML takes for a truth": ("classes: [{id: 1, name: on}]", r"expected a name, got True"),
    "colour": ("classes: [{id: 1, name: a, color: [1, 2]}]", r"class 'a': expected a color .* got \[1, 2\]"),
    "colour out of range": ("classes: [{id: 1, name: a, color: [1, 2, 256]}]", r"expected a color"),
    "ignore": ("classes: [{id: 1, name: a, ignore: 1}]", r"class 'a': expected ignore true or false, got 1"),
    "anomaly": (
        "classes: [{id: 1, name: a, anomaly: 1}]",
        r"class 'a': expected anomaly true or false, got 1",
    ),
    "ignored and an anomaly": (
        "classes: [{id: 1, name: a, ignore: true, anomaly: true}]",
        r"class 'a': expected ignore or anomaly, got both; choose one",
    ),
    "ignore value that is an anomaly": (
        "classes: [{id: 0, name: a}, {id: 255, name: b, anomaly: true}]\nignore: [255]",
        r"class 'b': id 255 is ignored and a class, too",
    ),
    "anomaly value that is a class": (
        "classes: [{id: 0, name: a}, {id: 0, name: b, anomaly: true}]",
        r"class 'b': id 0 is that of 'a', too",
    ),
    "unknown key": ("classes: [{id: 1, name: a, parents: b}]", r"expected the keys .*, got 'parents'"),
    "all ignored": ("classes: [{id: 1, name: a, ignore: true}]", r"expected 1 to 254 classes"),
    "no classes": ("groups: [{name: a}]", r"expected a list under classes:, got None"),
    "a list": ("[1, 2]", r"expected classes, groups, ignore, levels, got \[1, 2\]"),
    "levels": (CLASSES + "levels: [a, b]", r"expected 1 different names under levels:, .* got \['a', 'b'\]"),
    "a level that leads out of a directory": (
        CLASSES + "levels: [../a]",
        r"expected words of letters, digits, _ and - under levels:.* got '?\.\./a",
    ),
    "broken": ("classes: [", r"expected a YAML file of classes, got a broken one"),
    "a key twice": ("classes: [{id: 1, id: 2, name: a}]", r"line 1: the key 'id' is given twice"),
    "aliases": ("classes: &a [*a]", r"aliases \(\*name\) are not allowed"),
    "python": ("classes: !!python/object:os.system {}", r"got a broken one"),
    "deep": ("[" * 3000, r"nested too deeply|broken"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    text, message = REFUSED[name]
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        read_classes(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_more_classes_than_labels(tmp_path: Path) -> None:
    lines = "\n".join(f"  - {{id: {number}, name: c{number}}}" for number in range(255))
    with pytest.raises(
        DataError, match="expected 1 to 254 classes that are neither ignored nor anomalies, got 255"
    ):
        read_classes(written(tmp_path, f"classes:\n{lines}"))


def test_a_colour_with_two_meanings_is_only_wrong_for_masks_of_colours(tmp_path: Path) -> None:
    text = "classes: [{id: 0, name: a, color: [1, 1, 1]}, {id: 1, name: b, color: [1, 1, 1]}]"
    table = read_classes(written(tmp_path, text))
    with pytest.raises(DataError, match=r"class 'b': colour \[1, 1, 1\] is that of 'a', too"):
        table.label_of_colour()


@pytest.mark.parametrize("name", built_in_tables())
def test_built_in_tables_are_good(name: str) -> None:
    table = read_classes(built_in_tables()[name])
    assert len(table.classes) == {"camvid": 11, "streethazards": 13}.get(name, 19)
    if name == "streethazards":
        assert table.labels == {value: value - 1 for value in range(1, 14)} | {14: "anomaly"}
        assert len(table.label_of_colour()) == 14  # each its own
        assert not table.levels
        return
    assert SegmentationTask(levels=table.levels).levels
    assert len(table.levels[0].parents) == len(table.classes)
    for below, above in pairwise(table.levels):
        assert len(above.parents) == len(below.groups)
    assert len(table.label_of_colour()) == len(table.classes)


def test_the_two_tables_of_cityscapes_agree() -> None:
    ids, train_ids = (read_classes(built_in_tables()[n]) for n in ("cityscapes", "cityscapes_train_ids"))
    assert ids.classes == train_ids.classes
    assert ids.levels == train_ids.levels
    assert [value for value, label in train_ids.labels.items() if label == 13] == [13]
    assert [value for value, label in ids.labels.items() if label == 13] == [26]
    assert sorted(ids.labels) == list(range(34))


def test_the_example_of_seghiero(tmp_path: Path) -> None:
    """T5.9, T5.10: ranges are inclusive, and the super level is composed through the coarse one."""
    table = read_classes(written(tmp_path, imported(written(tmp_path, SEGHIERO))))
    assert len(table.classes) == 9
    coarse, above = table.levels
    assert coarse.parents == (0, 0, 0, 0, 1, 1, 1, 2, 3)
    assert [above.parents[parent] for parent in coarse.parents] == [0] * 8 + [1]
    assert (coarse.name, above.groups) == ("coarse", ("plant", "fungus"))
    assert table.labels[255] == "ignored"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[4, 6]", "[3, 6]", r"coarse_to_fine_map of 'tree': id 3 \(tulip\) overlaps 'flower'"),
        ("[4, 6]", "[5, 6]", r"coarse_to_fine_map: id 4 \(juniper\) is missing from all ranges"),
        ("[7]", "[9]", r"of 'grass': expected \[id\] or \[first, last\] in 0..8, got \[9\]"),
        ("[4, 6]", "[6, 4]", r"of 'tree': expected \[id\] or \[first, last\] in 0..8, got \[6, 4\]"),
        ("[7], ", "", r"expected 4 ranges in coarse_to_fine_map, one for each group, got 3"),
        ("[0, 2], [3]", "[0, 1], [3]", r"super_coarse_to_coarse_map: id 2 \(grass\) is missing"),
        ("lily", "rose", r"fine_names 'rose': expected different names"),
        ("fine_names", "names", r"expected classes with fine_names"),
    ],
)
def test_ranges_that_are_wrong(before: str, after: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        imported(written(tmp_path, SEGHIERO.replace(before, after, 1)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = written(tmp_path, SEGHIERO), tmp_path / "out.yaml"

    def run() -> int | str | None:
        with pytest.raises(SystemExit) as caught:
            main(("data", "import-classes", str(source), "-o", str(target)))
        return caught.value.code

    assert run() == 0
    assert "coarse: flower, tree, grass, mushroom" in capsys.readouterr().out
    assert read_classes(target).classes[8] == "lions mane"
    assert run() == 2
    assert "exists already" in capsys.readouterr().err
    source.write_text("a: 1")
    target.unlink()
    assert run() == 3
