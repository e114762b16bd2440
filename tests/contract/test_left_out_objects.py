"""Objects that a rule leaves out are counted in every format, and where the rule says so evaluation ignores them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydet.config import DataConfig, DetectionTask
from raydet.data.build import adopt_source, detect_source, ignored_in, open_source
from raydet.data.convert import convert
from raydet.data.shards.reader import ShardSet
from raydet.data.sources.base import Source
from raydet.errors import DataError
from raydet.metrics.measure import measure
from raydet.recipes.demo import demo
from raydet.tasks.detection import Detection, ground_truth

OBJECT_XYXY, CROWD_XYXY = (1, 1, 9, 9), (12, 2, 30, 18)
SIZE_HW = (20, 40)
ROWS = {"object": "person 1 1 8 8 0 0 0 0 0 {flag} 0", "crowd": "{name} 12 2 18 16 0 0 0 0 0 {flag} 0"}


def image(path: Path, channels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = SIZE_HW if channels == 1 else (*SIZE_HW, 3)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)


def write_coco(root: Path, **flags: object) -> Path:
    image(root / "v.png", 3)
    image(root / "t.png", 1)
    boxes = {1: OBJECT_XYXY, 2: CROWD_XYXY}
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for number, (x1, y1, x2, y2) in boxes.items()
    ]
    annotations[1] |= flags
    tree = {
        "images": [{"id": 1, "visible": "v.png", "thermal": "t.png"}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}],
    }
    (root / "annotations.json").write_text(json.dumps(tree))
    return root / "annotations.json"


def write_kaist(root: Path, *, name: str, flag: int) -> Path:
    for kind in ("visible", "lwir"):
        image(root / "images/set00/V000" / kind / "I00000.jpg", 3 if kind == "visible" else 1)
    rows = [ROWS["object"].format(flag=0), ROWS["crowd"].format(name=name, flag=flag)]
    label = root / "annotations/set00/V000/I00000.txt"
    label.parent.mkdir(parents=True)
    label.write_text("\n".join(["% bbGt version=3", *rows]))
    return root


def write_voc(root: Path, name: str) -> Path:
    image(root / "visible/a.png", 3)
    image(root / "infrared/a.png", 1)
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in (("person", OBJECT_XYXY), (name, CROWD_XYXY))
    )
    (root / "Annotations").mkdir()
    (root / "Annotations/a.xml").write_text(f"<annotation>{objects}</annotation>")
    return root


Write = Callable[[Path], str]

IGNORED: dict[str, tuple[Write, str]] = {
    "coco iscrowd": (lambda root: f"coco:{write_coco(root, iscrowd=1)}", "iscrowd"),
    "coco iscrowd as a float": (lambda root: f"coco:{write_coco(root, iscrowd=1.0)}", "iscrowd"),
    "coco ignore": (lambda root: f"coco:{write_coco(root, ignore=1)}", "ignore flag"),
    "coco ignore as a truth value": (lambda root: f"coco:{write_coco(root, ignore=True)}", "ignore flag"),
    "kaist person?": (lambda root: f"kaist:{write_kaist(root, name='person?', flag=0)}", "person?"),
    "kaist people": (lambda root: f"kaist:{write_kaist(root, name='people', flag=0)}", "people"),
    "kaist flag": (lambda root: f"kaist:{write_kaist(root, name='person', flag=1)}", "ignore flag"),
}
"""Detections on these are neither right nor wrong."""
LEFT_OUT: dict[str, tuple[Write, str]] = {
    "coco category": (
        lambda root: f'coco:{write_coco(root, category_id=2)}?classes=["person"]',
        "category car",
    ),
    "voc dog": (lambda root: f'voc:{write_voc(root, "dog")}?ignore=["dog"]', "dog"),
    "voc two names": (lambda root: f'voc:{write_voc(root, "cat")}?ignore=["cat","dog"]', "cat"),
}
"""Detections on these are wrong, like those on anything that is no object."""
ALL = IGNORED | LEFT_OUT


def opened(spec: str) -> tuple[DataConfig, Source]:
    data = adopt_source(demo(), detect_source(spec)).data
    return data, open_source(data)


@pytest.mark.parametrize("case", ALL)
def test_they_are_counted(case: str, tmp_path: Path) -> None:
    write, rule = ALL[case]
    data, source = opened(write(tmp_path / "set"))
    target, _ = source.targets(0)
    assert target.boxes_xyxy.tolist() == [list(OBJECT_XYXY)]
    assert target.ignored_xyxy.tolist() == ([list(CROWD_XYXY)] if case in IGNORED else [])
    assert ignored_in(source) == {rule: 1}
    manifest = convert(data, str(tmp_path / "shards"))
    shards = ShardSet(str(tmp_path / "shards"))
    assert manifest.ignored == ignored_in(shards) == {rule: 1}
    stored, _ = shards.targets(0)
    for name in ("boxes_xyxy", "labels", "ignored_xyxy", "ignored_labels"):
        assert getattr(stored, name).equal(getattr(target, name)), name


@pytest.mark.parametrize("case", ALL)
def test_detections_on_them(case: str, tmp_path: Path) -> None:
    """A detection in a part of the crowd, surer than that of the object."""
    _, source = opened(ALL[case][0](tmp_path / "set"))
    truth = ground_truth([source.targets(0)], num_classes=len(source.classes))
    rows = np.array([[0, 14, 4, 6, 8, 0.9, 0], [0, 1, 1, 8, 8, 0.8, 0]], dtype=float)
    result, _ = measure(DetectionTask(miss_rate=True, miss_rate_min_height_px=0), truth, rows, source.classes)
    assert result.metrics["mAP"] == pytest.approx(1.0 if case in IGNORED else 0.5)


@pytest.mark.parametrize("case", IGNORED)
def test_training_on_nothing_else_is_refused(case: str, tmp_path: Path) -> None:
    write, rule = IGNORED[case]
    write(tmp_path / "set")
    for file in (tmp_path / "set").rglob("*"):
        if file.suffix == ".json":
            tree = json.loads(file.read_text())
            tree["annotations"].pop(0)
            file.write_text(json.dumps(tree))
        elif file.suffix == ".txt":
            file.write_text(
                "\n".join(
                    line for line in file.read_text().splitlines() if line != ROWS["object"].format(flag=0)
                )
            )
            (tmp_path / "set" / "classes.txt").write_text("person\n")
    _, source = opened(str(tmp_path / "set"))
    with pytest.raises(
        DataError, match=rf"got 1 images without any; objects left out by rule: {rule.replace('?', '.')} 1"
    ):
        Detection(DetectionTask()).check_training_images(source, [0])


def test_a_region_of_any_class_is_ignored_for_each(tmp_path: Path) -> None:
    spec = f"kaist:{write_kaist(tmp_path, name='people', flag=0)}"
    (tmp_path / "classes.txt").write_text("cyclist\nperson\n")
    _, source = opened(spec)
    truth = ground_truth([source.targets(0)], num_classes=2)
    assert truth.labels.tolist() == [1, 0, 1]
    assert truth.is_crowd is not None
    assert truth.is_crowd.tolist() == [False, True, True]


def test_regions_are_cut_to_the_image(tmp_path: Path) -> None:
    """Annotators draw crowds loosely; what is outside wholly has no region, and counts all the same."""
    for bbox, expected in (([-5, -5, 20, 20], [[0, 0, 15, 15]]), ([100, 100, 5, 5], [])):
        root = tmp_path / str(bbox[0])
        _, source = opened(f"coco:{write_coco(root, iscrowd=1, bbox=bbox)}")
        assert source.targets(0)[0].ignored_xyxy.tolist() == expected
        assert ignored_in(source) == {"iscrowd": 1}
