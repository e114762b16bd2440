"""The same images in every format are the same samples."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from raydet.config import DataConfig, VocSource, YoloSource
from raydet.data.build import adopt_source, detect_source, left_out_of, open_source
from raydet.data.layouts import KINDS
from raydet.data.sources.base import Source
from raydet.data.sources.coco import CocoSet
from raydet.data.sources.npy_yolo import NpyYoloSet
from raydet.data.synthetic import SyntheticSet
from raydet.errors import ConfigError, DataError
from raydet.recipes.demo import demo
from tests.contract.formats import FILE_FORMATS, FORMATS, Format, write_npy_yolo

CLASSES = ("circle", "square", "triangle")

each_format = pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)


def synthetic(missing: tuple[str, ...] = ()) -> SyntheticSet:
    return SyntheticSet(
        num_sequences=3, frames_per_sequence=2, size_hw=(60, 80), classes=CLASSES, seed=1, missing=missing
    )


def without(format_: Format) -> tuple[str, ...]:
    return () if format_.has_event else ("event",)


def assert_same(format_: Format, expected: SyntheticSet, found: Source) -> None:
    assert found.classes == expected.classes
    assert found.modalities == expected.modalities
    assert list(found.image_ids) == [format_.image_id(name) for name in expected.image_ids]
    for index in range(len(expected)):
        a, b = expected.read(index), found.read(index)
        assert b.image_id == format_.image_id(a.image_id)
        assert (b.source_hw, b.valid_hw) == (a.source_hw, a.valid_hw)
        assert list(b.modalities) == list(a.modalities)
        for name in a.modalities:
            assert torch.equal(b.modalities[name], a.modalities[name]), name
        assert torch.equal(b.labels, a.labels)
        torch.testing.assert_close(b.boxes_xyxy, a.boxes_xyxy, atol=1e-4, rtol=0)


@each_format
def test_every_format_holds_the_same_images(format_: Format, tmp_path: Path) -> None:
    expected = synthetic(without(format_))
    found = format_.open(format_.write(expected, tmp_path / "set"), CLASSES, ())
    assert_same(format_, expected, found)
    if format_.has_groups:
        pairs = set(zip(expected.group_ids, found.group_ids, strict=True))
        assert len(pairs) == len(set(expected.group_ids)) == len(set(found.group_ids))
    else:
        assert set(found.group_ids) == {""}


def check_samples(source: Source) -> None:
    assert len(source) == len(source.image_ids) == len(source.group_ids) == len(set(source.image_ids))
    channels = {"rgb": 3, "thermal": 1, "event": 1}
    for index in range(len(source)):
        sample = source.read(index)
        target, size_hw = source.targets(index)
        boxes_xyxy, labels = target.boxes_xyxy, target.labels
        assert torch.equal(boxes_xyxy, sample.boxes_xyxy)
        assert torch.equal(labels, sample.labels)
        assert size_hw == sample.source_hw == sample.valid_hw == sample.canvas_hw
        assert sample.image_id == source.image_ids[index]
        assert sample.group_id == source.group_ids[index]
        assert boxes_xyxy.dtype == torch.float32
        assert boxes_xyxy.shape == (len(labels), 4)
        assert labels.dtype == torch.int64
        assert {name: x.shape[0] for name, x in sample.modalities.items()} == {
            name: channels[name] for name in source.modalities
        }


@each_format
def test_samples_are_well_formed(format_: Format, tmp_path: Path) -> None:
    source = format_.open(format_.write(synthetic(without(format_)), tmp_path), CLASSES, ())
    check_samples(source)
    assert left_out_of(source) == []
    check_samples(pickle.loads(pickle.dumps(source)))  # as loader processes get it


def test_samples_of_the_synthetic_set_are_well_formed() -> None:
    check_samples(synthetic())
    assert left_out_of(synthetic()) == []


@each_format
def test_a_missing_modality_is_left_out(format_: Format, tmp_path: Path) -> None:
    path = format_.write(synthetic(without(format_)), tmp_path)
    for missing, rest in ((("event",), ("rgb", "thermal")), (("rgb", "event"), ("thermal",))):
        source = format_.open(path, CLASSES, missing)
        assert source.modalities == rest
        assert tuple(source.read(0).modalities) == rest
    assert synthetic(("event",)).modalities == ("rgb", "thermal")


@each_format
def test_a_path_is_enough(format_: Format, tmp_path: Path) -> None:
    """Where the layout is plain to see; the experiment gets the classes and the modalities of the set."""
    expected = synthetic(without(format_))
    path = format_.write(expected, tmp_path)
    config = detect_source(f"{path}?labels=fused" if format_.name == "yolo" else str(path))
    assert config.kind == format_.name
    if isinstance(config, VocSource | YoloSource):
        config = config.model_copy(
            update={"event": "event", "group_prefix": len("sequence_0000")}
        )  # voc has no name for it of its own
    experiment = adopt_source(
        demo().model_copy(update={"data": DataConfig(classes=CLASSES, canvas_hw=(64, 64))}), config
    )
    assert experiment.data.missing == without(format_)
    assert_same(format_, expected, open_source(experiment.data))
    assert type(experiment).from_json(experiment.to_json(), where="here") == experiment


def test_real_images_survive_the_other_format(shared_data: Path, tmp_path: Path) -> None:
    coco = CocoSet(shared_data / "roadscene_flir" / "annotations.json")
    assert coco.classes == ("person", "bike", "car")
    assert coco.modalities == ("rgb", "thermal")
    assert len(coco) == 77
    assert num_boxes(coco) == 528
    write_npy_yolo(coco, tmp_path / "npy")
    npy = NpyYoloSet(tmp_path / "npy", classes=coco.classes, missing=("event",))
    assert npy.modalities == ("rgb", "thermal")
    where = {image_id: index for index, image_id in enumerate(npy.image_ids)}
    for index, image_id in enumerate(coco.image_ids):
        a, b = coco.read(index), npy.read(where[image_id])
        for name in coco.modalities:
            assert torch.equal(a.modalities[name], b.modalities[name])
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.boxes_xyxy, b.boxes_xyxy, atol=1e-3, rtol=0)


def test_the_published_labels_of_the_real_images_agree(shared_data: Path) -> None:
    root = shared_data / "roadscene_flir"
    coco = CocoSet(root / "annotations.json")
    stems = {
        e["id"]: Path(e["file_name"]).stem
        for e in json.loads((root / "annotations.json").read_text())["images"]
    }
    for index, image_id in enumerate(coco.image_ids):
        labels = coco.targets(index)[0].labels
        rows = (root / "labels" / f"{stems[int(image_id)]}.txt").read_text().split("\n")
        assert labels.tolist() == [int(row.split()[0]) for row in rows if row]


def num_boxes(source: Source) -> int:
    return sum(len(source.targets(index)[0].labels) for index in range(len(source)))


def opened(spec: str) -> Source:
    return open_source(adopt_source(demo(), detect_source(spec)).data)


@pytest.mark.parametrize(("labels", "boxes"), [("rgb", 98), ("thermal", 266), ("fused", 211)])
def test_each_label_set_of_msrs(shared_data: Path, labels: str, boxes: int) -> None:
    source = opened(f"{shared_data / 'msrs'}?labels={labels}")
    assert (source.classes, source.modalities) == (("person", "bicycle", "car"), ("rgb", "thermal"))
    assert (len(source), num_boxes(source)) == (38, boxes)
    sample = source.read(0)
    assert {name: tuple(x.shape) for name, x in sample.modalities.items()} == {
        "rgb": (3, 480, 640),
        "thermal": (1, 480, 640),
    }


def test_the_union_of_msrs_counts_no_object_twice(shared_data: Path) -> None:
    root = shared_data / "msrs"
    rgb, thermal = opened(f"{root}?labels=rgb"), opened(f"{root}?labels=thermal")
    both = opened(f"{root}?labels=union")
    pairs = 0
    for index in range(len(both)):
        la, lb, labels = (s.targets(index)[0].labels for s in (rgb, thermal, both))
        assert max(len(la), len(lb)) <= len(labels) <= len(la) + len(lb)
        for k in range(3):
            assert max((la == k).sum(), (lb == k).sum()) <= (labels == k).sum()
        pairs += len(la) + len(lb) - len(labels)
    assert 0.5 * 98 < pairs <= 98  # most of what is seen by day is warm, too
    assert num_boxes(both) == 98 + 266 - pairs


def test_llvip(shared_data: Path) -> None:
    source = opened(str(shared_data / "llvip"))
    assert (source.classes, source.modalities) == (("person",), ("rgb", "thermal"))
    assert (len(source), num_boxes(source)) == (8, 30)
    assert source.targets(0)[0].boxes_xyxy[0].tolist() == [977, 0, 1074, 248]  # its pixels are counted from 1
    sample = source.read(0)
    assert sample.source_hw == (1024, 1280)
    assert sample.modalities["thermal"].shape == (1, 1024, 1280)


def test_several_label_sets_want_a_choice(shared_data: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has several label sets \(rgb, thermal, fused\); choose .*labels=union'"
    ):
        detect_source(str(shared_data / "msrs"))


def test_every_kind_is_tried_here() -> None:
    """But those with masks: see test_mask_set.py, test_street_hazards.py, test_tree.py and test_strange.py; and event
    windows: see test_silent.py, test_swarm.py and test_event_recordings.py."""
    with_masks = {"masks", "streethazards", "tree", "strange"}
    of_windows = {"silent", "swarm", "event_recordings"}
    assert set(KINDS) == {format_.name for format_ in FORMATS} | {"synthetic"} | with_masks | of_windows


@pytest.mark.parametrize("format_", FILE_FORMATS, ids=lambda f: f.name)
def test_images_need_no_labels_for_predictions(format_: Format, tmp_path: Path) -> None:
    """The classes are those of the run; everything else wants labels, and says so."""
    expected = synthetic(without(format_))
    path = format_.write(expected, tmp_path)
    for file in list(tmp_path.rglob("*")):
        if file.suffix in (".txt", ".xml"):
            file.unlink()
        elif file.suffix == ".json":
            tree = json.loads(file.read_text())
            file.write_text(json.dumps({"images": tree["images"]}))
    for name in ("labels", "labels_vi", "labels_ir", "labels_fusion", "Annotations", "annotations"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    spec = f"{format_.name}:{path}" + ("?event=event" if format_.name == "voc" else "")
    config = detect_source(spec, is_labelled=False)
    experiment = adopt_source(demo(), config, classes=CLASSES, is_labelled=False)
    source = open_source(experiment.data, is_labelled=False)
    assert source.classes == CLASSES
    assert list(source.image_ids) == [format_.image_id(name) for name in expected.image_ids]
    for index in range(len(expected)):
        assert len(source.read(index).labels) == 0
        for name, pixels in expected.read(index).modalities.items():
            assert torch.equal(source.read(index).modalities[name], pixels)
    with pytest.raises((ConfigError, DataError), match=r"(?i)label|annotation|directory"):
        opened(spec)
