"""The same pictures in every format are the same samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydet.config import DataConfig, SyntheticSource
from raydet.data.convert import convert
from raydet.data.shards.reader import ShardSet
from raydet.data.sources.base import Source
from raydet.data.sources.coco import CocoSet
from raydet.data.sources.npy_yolo import NpyYoloSet
from raydet.data.synthetic import SyntheticSet

CLASSES = ("circle", "square", "triangle")


def write_npy_yolo(source: Source, root: Path) -> None:
    """What `source` holds, as arrays; a modality that it lacks is a channel of zeros."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index, image_id in enumerate(source.image_ids):
        sample = source.read(index)
        height, width = sample.source_hw
        event = sample.modalities.get("event", torch.zeros(1, height, width, dtype=torch.uint8))
        planes = torch.cat([sample.modalities["rgb"], sample.modalities["thermal"], event])
        np.save(root / "images" / f"{image_id}.npy", planes.permute(1, 2, 0).numpy())
        rows = []
        for label, (x1, y1, x2, y2) in zip(
            sample.labels.tolist(), sample.boxes_xyxy.double().tolist(), strict=True
        ):
            xc, yc, w, h = (
                (x1 + x2) / 2 / width,
                (y1 + y2) / 2 / height,
                (x2 - x1) / width,
                (y2 - y1) / height,
            )
            rows.append(f"{label} {xc!r} {yc!r} {w!r} {h!r}\n")
        (root / "labels" / f"{image_id}.txt").write_text("".join(rows))


def write_coco(source: Source, root: Path) -> Path:
    """What `source` holds, as PNG files and a json whose category ids have gaps."""
    category_ids = [3 * label + 2 for label in range(len(source.classes))]
    tree: dict[str, list[dict[str, object]]] = {
        "images": [],
        "annotations": [],
        # In another order than the ids, which decide.
        "categories": [
            {"id": number, "name": name}
            for number, name in reversed(list(zip(category_ids, source.classes, strict=True)))
        ],
    }
    for index, image_id in enumerate(source.image_ids):
        sample = source.read(index)
        height, width = sample.source_hw
        entry: dict[str, object] = {"id": image_id, "width": width, "height": height}
        for name, pixels in sample.modalities.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            array = pixels.permute(1, 2, 0).numpy()
            Image.fromarray(array if name == "rgb" else array[..., 0]).save(root / name / f"{image_id}.png")
            entry["visible" if name == "rgb" else name] = f"{name}/{image_id}.png"
        tree["images"].append(entry | {"group_id": sample.group_id})
        for label, (x1, y1, x2, y2) in zip(sample.labels.tolist(), sample.boxes_xyxy.tolist(), strict=True):
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]),
                    "image_id": image_id,
                    "category_id": category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    path = root / "annotations.json"
    path.write_text(json.dumps(tree))
    return path


def synthetic() -> SyntheticSet:
    return SyntheticSet(num_sequences=3, frames_per_sequence=2, size_hw=(60, 80), classes=CLASSES, seed=1)


DATA = DataConfig(
    source=SyntheticSource(num_sequences=3, frames_per_sequence=2, size_hw=(60, 80), seed=1),
    classes=CLASSES,
    canvas_hw=(64, 96),
)
"""The same, as a config."""


def as_synthetic(_: Path) -> Source:
    return synthetic()


def as_npy_yolo(root: Path) -> Source:
    write_npy_yolo(synthetic(), root)
    return NpyYoloSet(root, classes=CLASSES)


def as_coco(root: Path) -> Source:
    return CocoSet(write_coco(synthetic(), root))


def as_shards(root: Path) -> Source:
    convert(DATA, str(root), pictures_per_shard=4)
    return ShardSet(str(root))


def as_raw_shards(root: Path) -> Source:
    convert(DATA, str(root), encoding="raw", pictures_per_shard=4)
    return ShardSet(str(root))


SOURCES = [as_synthetic, as_npy_yolo, as_coco, as_shards, as_raw_shards]


@pytest.mark.parametrize("open_source", SOURCES)
def test_every_format_holds_the_same_pictures(open_source: Callable[[Path], Source], tmp_path: Path) -> None:
    wanted, found = synthetic(), open_source(tmp_path)
    assert found.classes == wanted.classes
    assert found.modalities == wanted.modalities
    assert list(found.image_ids) == list(wanted.image_ids)
    for index in range(len(wanted)):
        a, b = wanted.read(index), found.read(index)
        assert (b.image_id, b.source_hw, b.valid_hw) == (a.image_id, a.source_hw, a.valid_hw)
        assert list(b.modalities) == list(a.modalities)
        for name in a.modalities:
            assert torch.equal(b.modalities[name], a.modalities[name]), name
        assert torch.equal(b.labels, a.labels)
        torch.testing.assert_close(b.boxes_xyxy, a.boxes_xyxy, atol=1e-4, rtol=0)


@pytest.mark.parametrize("open_source", SOURCES)
def test_samples_are_well_formed(open_source: Callable[[Path], Source], tmp_path: Path) -> None:
    source = open_source(tmp_path)
    assert len(source) == len(source.image_ids) == len(source.group_ids) == len(set(source.image_ids))
    for index in range(len(source)):
        sample = source.read(index)
        boxes_xyxy, labels, size_hw = source.targets(index)
        assert torch.equal(boxes_xyxy, sample.boxes_xyxy)
        assert torch.equal(labels, sample.labels)
        assert size_hw == sample.source_hw == sample.valid_hw == sample.canvas_hw
        assert sample.image_id == source.image_ids[index]
        assert sample.group_id == source.group_ids[index]
        assert boxes_xyxy.dtype == torch.float32
        assert boxes_xyxy.shape == (len(labels), 4)
        assert labels.dtype == torch.int64
        assert {name: x.shape[0] for name, x in sample.modalities.items()} == {
            "rgb": 3,
            "thermal": 1,
            "event": 1,
        }


def test_a_missing_modality_is_left_out_in_every_format(tmp_path: Path) -> None:
    write_npy_yolo(synthetic(), tmp_path / "npy")
    convert(DATA, str(tmp_path / "shards"))
    path = write_coco(synthetic(), tmp_path / "coco")
    sources: list[Source] = [
        NpyYoloSet(tmp_path / "npy", classes=CLASSES, missing=("event",)),
        CocoSet(path, missing=("event",)),
        ShardSet(str(tmp_path / "shards"), missing=("event",)),
        SyntheticSet(
            num_sequences=2,
            frames_per_sequence=1,
            size_hw=(60, 80),
            classes=CLASSES,
            seed=1,
            missing=("event",),
        ),
    ]
    for source in sources:
        assert source.modalities == ("rgb", "thermal")
        assert list(source.read(0).modalities) == ["rgb", "thermal"]


def test_real_pictures_survive_the_other_format(shared_data: Path, tmp_path: Path) -> None:
    coco = CocoSet(shared_data / "roadscene_flir" / "annotations.json")
    assert coco.classes == ("person", "bike", "car")
    assert coco.modalities == ("rgb", "thermal")
    assert len(coco) == 77
    assert sum(len(coco.targets(index)[1]) for index in range(len(coco))) == 528
    write_npy_yolo(coco, tmp_path)
    npy = NpyYoloSet(tmp_path, classes=coco.classes, missing=("event",))
    assert npy.modalities == ("rgb", "thermal")
    where = {image_id: index for index, image_id in enumerate(npy.image_ids)}
    for index, image_id in enumerate(coco.image_ids):
        a, b = coco.read(index), npy.read(where[image_id])
        for name in coco.modalities:
            assert torch.equal(a.modalities[name], b.modalities[name])
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.boxes_xyxy, b.boxes_xyxy, atol=1e-3, rtol=0)


def test_the_published_labels_of_the_real_pictures_agree(shared_data: Path) -> None:
    root = shared_data / "roadscene_flir"
    coco = CocoSet(root / "annotations.json")
    stems = {
        e["id"]: Path(e["file_name"]).stem
        for e in json.loads((root / "annotations.json").read_text())["images"]
    }
    for index, image_id in enumerate(coco.image_ids):
        _, labels, _ = coco.targets(index)
        rows = (root / "labels" / f"{stems[int(image_id)]}.txt").read_text().split("\n")
        assert labels.tolist() == [int(row.split()[0]) for row in rows if row]
