from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_iou

from raydet.data.sources.yolo import YoloSet, find_images, find_labels, union
from raydet.errors import DataError

A, B = "0 0.25 0.5 0.5 0.5\n", "1 0.75 0.5 0.5 0.5\n"


def write(root: Path, images: dict[str, str], labels: dict[str, str]) -> Path:
    """One image `a`: directories by modality, and label texts by directory."""
    for name in images.values():
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 16), np.uint8)).save(root / name / "a.png")
    for name, text in labels.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "a.txt").write_text(text)
    return root


LAYOUTS = [
    ({"rgb": "vi", "thermal": "ir"}, {"rgb": "labels_vi", "thermal": "labels_ir", "fused": "labels_fusion"}),
    (
        {"rgb": "images/visible", "thermal": "images/infrared", "event": "images/event"},
        {"rgb": "labels/visible", "thermal": "labels/infrared"},
    ),
    ({"rgb": "rgb", "thermal": "lwir"}, {"fused": "labels"}),
]


@pytest.mark.parametrize(("images", "labels"), LAYOUTS)
def test_common_names_are_found(tmp_path: Path, images: dict[str, str], labels: dict[str, str]) -> None:
    write(tmp_path, images, dict.fromkeys(labels.values(), A))
    assert find_images(tmp_path) == images
    assert find_labels(tmp_path) == labels
    source = YoloSet(tmp_path, classes=("a", "b"), labels=next(iter(labels)))
    assert source.modalities == tuple(images)
    assert source.targets(0)[0].boxes_xyxy.tolist() == [[0, 2, 8, 6]]


def test_other_names_can_be_given(tmp_path: Path) -> None:
    write(tmp_path, {"rgb": "day/left", "thermal": "heat"}, {"boxes": A})
    source = YoloSet(
        tmp_path,
        classes=("a",),
        labels="thermal",
        image_directories={"rgb": "day", "thermal": "heat"},
        label_directories={"thermal": "boxes"},
    )
    assert (source.modalities, source.image_ids) == (("rgb", "thermal"), ["a"])


def test_each_policy_reads_its_own_labels(tmp_path: Path) -> None:
    images, labels = LAYOUTS[0]
    write(tmp_path, images, {labels["rgb"]: A, labels["thermal"]: A + B, labels["fused"]: ""})
    counts = {
        policy: len(YoloSet(tmp_path, classes=("a", "b"), labels=policy).targets(0)[0].labels)
        for policy in ("rgb", "thermal", "union", "fused")
    }
    assert counts == {"rgb": 1, "thermal": 2, "union": 2, "fused": 0}


def test_a_label_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"rgb": "vi"}, {"labels_vi": A})
    with pytest.raises(
        DataError, match=r"labels=union needs labels for thermal, found labels for rgb; .*_thermal"
    ):
        YoloSet(tmp_path, classes=("a",), labels="union")


def test_an_image_without_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"rgb": "vi", "thermal": "ir"}, {"labels": A})
    for name in ("vi", "ir"):
        Image.fromarray(np.zeros((8, 16), np.uint8)).save(tmp_path / name / "b.png")
    with pytest.raises(
        DataError, match=r"1 without fused label \(b\); add the files \(an empty label file means"
    ):
        YoloSet(tmp_path, classes=("a",), labels="fused")


def test_the_better_partner_wins() -> None:
    first = [(0.0, 0.0, 10.0, 10.0), (1.0, 0.0, 11.0, 10.0)], [0, 0]
    second = [(1.0, 0.0, 11.0, 11.0)], [0]
    assert union(first, second, min_iou=0.5) == ([(0, 0, 10, 10), (1, 0, 11, 11)], [0, 0])


def test_other_classes_are_other_objects() -> None:
    boxes = [(0.0, 0.0, 4.0, 4.0)]
    assert union((boxes, [0]), (boxes, [1]), min_iou=0.1) == (boxes * 2, [0, 1])


BOXES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1)),
    max_size=6,
)


@settings(max_examples=100)
@given(first=BOXES, second=BOXES, min_iou=st.sampled_from([0.3, 0.5, 1.0]))
def test_a_union_against_its_definition(
    first: list[tuple[int, ...]], second: list[tuple[int, ...]], min_iou: float
) -> None:
    sets = [
        ([(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h, _ in rows], [k for *_, k in rows])
        for rows in (first, second)
    ]
    boxes, labels = union(*sets, min_iou=min_iou)
    (a, la), (b, lb) = sets
    merged = len(a) + len(b) - len(boxes)
    assert labels[: len(la)] == la
    assert len(boxes) >= max(len(a), len(b))
    if not a or not b:
        assert merged == 0
        return
    iou = box_iou(torch.tensor(a), torch.tensor(b)).double()
    iou[torch.tensor(la)[:, None] != torch.tensor(lb)[None]] = 0
    mutual = {
        (i, int(iou[i].argmax()))
        for i in range(len(a))
        if iou[i].max() >= min_iou and int(iou[:, int(iou[i].argmax())].argmax()) == i
    }
    assert merged == len(mutual)
    for i, j in mutual:
        assert boxes[i] == (
            min(a[i][0], b[j][0]),
            min(a[i][1], b[j][1]),
            max(a[i][2], b[j][2]),
            max(a[i][3], b[j][3]),
        )
    taken = {j for _, j in mutual}
    assert boxes[len(a) :] == [box for j, box in enumerate(b) if j not in taken]
