"""A million images: the index is looked at where it is expected, not loaded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydet.data.shards.layout import ENTRY, shard_name
from raydet.data.shards.manifest import INDEX, MANIFEST, FileEntry, Manifest, ModalityEntry, ShardEntry
from raydet.data.shards.writer import index_file

NUM_IMAGES = 1_000_000
PER_SHARD = 64
PER_GROUP = 500

LOOK = """
import sys, time, psutil, pyarrow, torch, numpy
from raydet.data.shards.reader import ShardSet
rss = lambda: psutil.Process().memory_info().rss
before, started = rss(), time.perf_counter()
source = ShardSet(sys.argv[1])
opened_s = time.perf_counter() - started
rows = [0, 1, 777_777, 999_999]
ids = [source.image_ids[row] for row in rows]
groups = [source.group_ids[row] for row in rows]
boxes = [source.targets(row)[0].boxes_xyxy.tolist() for row in rows]
opened = rss() - before
wrong = 0
for row in numpy.random.RandomState(0).permutation(len(source))[:20_000].tolist():
    x, y = row % 300, row % 200
    wrong += source.image_ids[row] != f"sequence_{row // 500:05d}/frame_{row:07d}"
    wrong += source.group_ids[row] != f"sequence_{row // 500:05d}"
    wrong += source.targets(row)[0].boxes_xyxy.tolist() != [[x, y, x + 9, y + 9]] * 2
import json
print(json.dumps([len(source), ids, groups, boxes, wrong, opened, rss() - before, opened_s]))
"""


def write_index(root: Path, num_images: int = NUM_IMAGES) -> None:
    """Index and manifest of so many images of two boxes each; their shards are not there."""
    root.mkdir(exist_ok=True)
    rows = np.arange(num_images)
    boxes = np.stack([rows % 300, rows % 200, rows % 300 + 9, rows % 200 + 9] * 2, axis=1).astype("f4")
    columns = [
        pa.array([f"sequence_{row // PER_GROUP:05d}/frame_{row:07d}" for row in rows], pa.large_string()),
        pa.array([f"sequence_{row // PER_GROUP:05d}" for row in rows], pa.large_string()),
        pa.array(np.full(num_images, 512, "i4")),
        pa.array(np.full(num_images, 640, "i4")),
        pa.LargeListArray.from_arrays(
            pa.array(np.arange(num_images + 1) * 8), boxes.ravel(), type=ENTRY.field("boxes_xyxy").type
        ),
        pa.LargeListArray.from_arrays(
            pa.array(np.arange(num_images + 1) * 2),
            np.zeros(2 * num_images, "i4"),
            type=ENTRY.field("labels").type,
        ),
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), num_images, [None, pa.py_buffer(np.zeros(4 * num_images, "i8"))]
        ),
    ]
    content = index_file([pa.RecordBatch.from_arrays(columns, schema=ENTRY)])
    (root / INDEX).write_bytes(content)
    manifest = Manifest.of(
        encoding="zstd",
        classes=("person",),
        modalities={"rgb": ModalityEntry(channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)},
        images=num_images,
        boxes={"person": 2 * num_images},
        left_out=0,
        index=FileEntry(name=INDEX, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)),
        shards=tuple(
            ShardEntry(name=shard_name(number), sha256="0" * 64, size_bytes=1, images=PER_SHARD)
            for number in range(num_images // PER_SHARD)
        ),
        plan={},
    )
    (root / MANIFEST).write_text(manifest.to_json())


@pytest.mark.slow
def test_a_million_images_are_opened_without_being_loaded(tmp_path: Path) -> None:
    write_index(tmp_path)
    look = [sys.executable, "-c", LOOK, str(tmp_path)]
    subprocess.run(look, check=True, capture_output=True)  # the file's hash is verified once per machine
    output = subprocess.run(look, check=True, capture_output=True, text=True).stdout
    count, ids, groups, boxes, wrong, opened, looked, opened_s = json.loads(output)
    print(f"opened in {opened_s:.2f} s, {opened / 2**20:.0f} MiB; {looked / 2**20:.0f} MiB after 20,000 rows")  # noqa: T201
    assert count == NUM_IMAGES
    assert ids[2:] == ["sequence_01555/frame_0777777", "sequence_01999/frame_0999999"]
    assert groups[2:] == ["sequence_01555", "sequence_01999"]
    assert boxes[2] == [[777_777 % 300, 777_777 % 200, 777_777 % 300 + 9, 777_777 % 200 + 9]] * 2
    assert wrong == 0, "of 20,000 images at random"
    assert opened < 100 * 2**20
    assert looked < 200 * 2**20
