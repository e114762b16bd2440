"""Sets of shards to look at and to spoil."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import torch

from raydet.config import DataConfig, SyntheticSource
from raydet.data.shards.layout import shard_name
from raydet.data.shards.manifest import INDEX, MANIFEST, Encoding, FileEntry, Manifest, ShardEntry
from raydet.data.shards.target import kind_of
from raydet.data.shards.writer import ShardBuilder, index_file, modality_entries, read_part
from raydet.structures import Boxes, Sample

CLASSES = ("circle", "square", "triangle")


def data(num_sequences: int = 3, frames: int = 2) -> DataConfig:
    """A synthetic set."""
    source = SyntheticSource(num_sequences=num_sequences, frames_per_sequence=frames, size_hw=(40, 48))
    return DataConfig(source=source, classes=CLASSES, canvas_hw=(64, 64))


def image(name: str, *, boxes: int = 2, is_float: bool = False, size_hw: tuple[int, int] = (7, 9)) -> Sample:
    """Random pixels; the thermal channel as 16-bit cameras give it, where `is_float`."""
    rgb = torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8)
    thermal = torch.rand(1, *size_hw) if is_float else torch.randint(0, 256, (1, *size_hw), dtype=torch.uint8)
    boxes_xyxy = torch.rand(boxes, 4)
    return Sample(
        image_id=name,
        group_id="a group",
        modalities={"rgb": rgb, "thermal": thermal},
        target=Boxes(boxes_xyxy, torch.arange(boxes) % len(CLASSES)),
        source_hw=size_hw,
        valid_hw=size_hw,
    )


def write_set(samples: Sequence[Sample], root: Path, encoding: Encoding = "raw") -> Manifest:
    """One shard, its index and its manifest."""
    target = kind_of(samples[0].target)
    builder = ShardBuilder(("rgb", "thermal"), encoding, num_classes=len(CLASSES), target=target)
    for sample in samples:
        builder.add(sample)
    shard, part = builder.finish(plan="", left_out=())
    entries, summary = read_part(part)
    root.mkdir(parents=True, exist_ok=True)
    (root / shard_name(0)).write_bytes(shard)
    (root / INDEX).write_bytes(index_file([entries]))
    return sealed(
        root,
        Manifest.of(
            encoding=encoding,
            classes=CLASSES,
            modalities=modality_entries([summary], ("rgb", "thermal")),
            images=len(samples),
            target=target,
            boxes=dict.fromkeys(CLASSES, 0),
            left_out=0,
            index=file_entry(root / INDEX),
            shards=(ShardEntry(**file_entry(root / shard_name(0)).model_dump(), images=len(samples)),),
            plan={},
        ),
    )


def sealed(root: Path, manifest: Manifest) -> Manifest:
    """Write a manifest whose hashes are those of the files as they are now: what a forger would do."""
    kept = manifest.model_dump(
        exclude={"schema_version", "sha256", "content_sha256", "index", "shards", "modalities"}
    )
    shards = tuple(
        ShardEntry(**file_entry(root / shard.name).model_dump(), images=shard.images)
        for shard in manifest.shards
    )
    fresh = Manifest.of(**kept, modalities=manifest.modalities, index=file_entry(root / INDEX), shards=shards)
    (root / MANIFEST).write_text(fresh.to_json())
    return fresh


def file_entry(path: Path) -> FileEntry:
    """A file as it is now."""
    content = path.read_bytes()
    return FileEntry(name=path.name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def forged(
    root: Path, manifest: Manifest, name: str, change: Callable[[pa.RecordBatch], pa.RecordBatch]
) -> None:
    """Change a file and make all hashes right."""
    batch = change(pa.ipc.open_file(root / name).get_batch(0))
    with pa.ipc.new_file(root / name, batch.schema) as writer:
        writer.write_batch(batch)
    sealed(root, manifest)


def column(name: str, values: object) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """A change that puts other values into a column."""

    def change(batch: pa.RecordBatch) -> pa.RecordBatch:
        place = batch.schema.get_field_index(name)
        array = values if isinstance(values, pa.Array) else pa.array(values, batch.schema.field(name).type)
        return batch.set_column(place, batch.schema.field(name), array)

    return change
