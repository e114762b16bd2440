"""Writes what a source holds in every other format, and opens it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raydet.config import CocoSource
from raydet.data.build import adopt_source
from raydet.data.convert import convert
from raydet.data.shards.reader import ShardSet
from raydet.data.sources.base import Source
from raydet.data.sources.coco import CocoSet
from raydet.data.sources.flir import FlirSet
from raydet.data.sources.kaist import KaistSet
from raydet.data.sources.npy_yolo import NpyYoloSet
from raydet.data.sources.voc import VocSet
from raydet.data.sources.yolo import YoloSet
from raydet.recipes.demo import demo
from raydet.structures import Sample

YOLO_DIRECTORIES = {"rgb": "vi", "thermal": "ir", "event": "event"}
VOC_DIRECTORIES = {"rgb": "visible", "thermal": "infrared", "event": "event"}


def samples(source: Source) -> Iterator[Sample]:
    return (source.read(index) for index in range(len(source)))


def rows_of(sample: Sample) -> str:
    """YOLO rows that lose nothing."""
    height, width = sample.source_hw
    rows = []
    for label, (x1, y1, x2, y2) in named(sample):
        numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        rows.append(f"{label} " + " ".join(map(repr, numbers)) + "\n")
    return "".join(rows)


def named(sample: Sample) -> list[tuple[int, list[float]]]:
    return list(zip(sample.labels.tolist(), sample.boxes_xyxy.double().tolist(), strict=True))


def save_image(pixels: Tensor, path: Path) -> Path:
    """Lossless, whatever the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = pixels.permute(1, 2, 0).numpy()
    Image.fromarray(array if len(pixels) == 3 else array[..., 0]).save(path, format="PNG")
    return path


def save_text(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def voc_xml(sample: Sample, classes: Collection[str]) -> str:
    """With pixels counted from 1, both ends in the box."""
    names, (height, width) = list(classes), sample.source_hw
    objects = "".join(
        f"<object><name>{names[label]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1:.0f}</xmin>"
        f"<ymin>{y1 + 1:.0f}</ymin><xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in named(sample)
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f'<?xml version="1.0"?>\n<annotation>{size}{objects}</annotation>\n'


def write_npy_yolo(source: Source, root: Path) -> Path:
    """As arrays; a modality that the source lacks is a channel of zeros."""
    (root / "images").mkdir(parents=True)
    for sample in samples(source):
        event = sample.modalities.get("event", torch.zeros(1, *sample.source_hw, dtype=torch.uint8))
        planes = torch.cat([sample.modalities["rgb"], sample.modalities["thermal"], event])
        np.save(root / "images" / f"{sample.image_id}.npy", planes.permute(1, 2, 0).numpy())
        save_text(rows_of(sample), root / "labels" / f"{sample.image_id}.txt")
    return root


def write_coco(source: Source, root: Path) -> Path:
    """As PNG files and a json whose category ids have gaps."""
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
    for sample in samples(source):
        height, width = sample.source_hw
        entry: dict[str, object] = {"id": sample.image_id, "width": width, "height": height}
        for name, pixels in sample.modalities.items():
            save_image(pixels, root / name / f"{sample.image_id}.png")
            entry["visible" if name == "rgb" else name] = f"{name}/{sample.image_id}.png"
        tree["images"].append(entry | {"group_id": sample.group_id})
        for label, (x1, y1, x2, y2) in named(sample):
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]),
                    "image_id": sample.image_id,
                    "category_id": category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    path = root / "annotations.json"
    path.write_text(json.dumps(tree))
    return path


def write_voc(source: Source, root: Path) -> Path:
    for sample in samples(source):
        for name, pixels in sample.modalities.items():
            save_image(pixels, root / VOC_DIRECTORIES[name] / "train" / f"{sample.image_id}.jpg")
        save_text(voc_xml(sample, source.classes), root / "Annotations" / f"{sample.image_id}.xml")
    return root


def write_yolo(source: Source, root: Path) -> Path:
    """Even objects are in one label set, odd ones in the other; both, in order, in the fused one."""
    for sample in samples(source):
        for name, pixels in sample.modalities.items():
            save_image(pixels, root / YOLO_DIRECTORIES[name] / f"{sample.image_id}.png")
        rows = rows_of(sample).splitlines(keepends=True)
        for name, part in {"vi": rows[::2], "ir": rows[1::2], "fusion": rows}.items():
            save_text("".join(part), root / f"labels_{name}" / f"{sample.image_id}.txt")
    save_text("\n".join(source.classes), root / "classes.txt")
    return root


def write_flir(source: Source, root: Path) -> Path:
    names = []
    for sample in samples(source):
        names.append(f"{sample.image_id}_PreviewData")
        save_image(sample.modalities["rgb"], root / "JPEGImages" / f"{sample.image_id}_RGB.jpg")
        save_image(sample.modalities["thermal"], root / "JPEGImages" / f"{names[-1]}.jpeg")
        save_text(voc_xml(sample, source.classes), root / "Annotations" / f"{names[-1]}.xml")
    save_text("\n".join(names), root / "align_train.txt")
    return root


def kaist_id(image_id: str) -> str:
    """`sequence_0001_0002` is frame 2 of video 1."""
    _, video, frame = image_id.split("_")
    return f"set00_V{int(video):03d}_I{int(frame):05d}"


def write_kaist(source: Source, root: Path) -> Path:
    """Every other frame as xml."""
    for number, sample in enumerate(samples(source)):
        chapter, video, frame = kaist_id(sample.image_id).split("_")
        place = root / "images" / chapter / video
        save_image(sample.modalities["rgb"], place / "visible" / f"{frame}.jpg")
        save_image(sample.modalities["thermal"], place / "lwir" / f"{frame}.jpg")
        objects = [(source.classes[k], x1, y1, x2 - x1, y2 - y1) for k, (x1, y1, x2, y2) in named(sample)] + [
            ("people", 1.0, 1.0, 5.0, 5.0)
        ]
        if number % 2:
            text = "% bbGt version=3\n" + "".join(
                f"{name} {x:g} {y:g} {w:g} {h:g} 0 0 0 0 0 0 0\n" for name, x, y, w, h in objects
            )
        else:
            text = "".join(
                f"<object><name>{name}</name><bndbox><x>{x:g}</x><y>{y:g}</y><w>{w:g}</w><h>{h:g}</h></bndbox></object>"
                for name, x, y, w, h in objects
            )
            text = f"<annotation>{text}</annotation>"
        ending = "txt" if number % 2 else "xml"
        save_text(text, root / "annotations" / chapter / video / f"{frame}.{ending}")
    return root


def write_shards(source: Source, root: Path) -> Path:
    """By conversion from a COCO json."""
    config = CocoSource(annotations=str(write_coco(source, root / "coco")))
    convert(adopt_source(demo(), config).data, str(root / "shards"), images_per_shard=4)
    return root / "shards"


@dataclass(frozen=True)
class Format:
    """How a set is written in a format, and read from there."""

    name: str
    write: Callable[[Source, Path], Path]
    """What is to be opened."""
    open: Callable[[Path, tuple[str, ...], tuple[str, ...]], Source]
    """From that, the classes and the missing modalities."""
    has_event: bool = True
    has_groups: bool = True
    image_id: Callable[[str], str] = str
    """What becomes of an id."""


FILE_FORMATS = (
    Format(
        "npy_yolo",
        write_npy_yolo,
        lambda path, classes, missing: NpyYoloSet(path, classes=classes, missing=missing),
        has_groups=False,
    ),
    Format("coco", write_coco, lambda path, _, missing: CocoSet(path, missing=missing)),
    Format(
        "voc",
        write_voc,
        lambda path, _, missing: VocSet(
            path, missing=missing, directories=VOC_DIRECTORIES, group_prefix=len("sequence_0000")
        ),
    ),
    Format(
        "yolo",
        write_yolo,
        lambda path, classes, missing: YoloSet(
            path, classes=classes, missing=missing, labels="fused", group_prefix=len("sequence_0000")
        ),
    ),
    Format(
        "flir",
        write_flir,
        lambda path, _, missing: FlirSet(path, missing=missing),
        has_event=False,
        has_groups=False,
    ),
    Format(
        "kaist",
        write_kaist,
        lambda path, _, missing: KaistSet(path, missing=missing),
        has_event=False,
        image_id=kaist_id,
    ),
)
"""Files that people and other programs write."""
FORMATS = (
    *FILE_FORMATS,
    Format("shards", write_shards, lambda path, _, missing: ShardSet(str(path), missing=missing)),
)
