"""Shards give back what was put in, and refuse what was not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raydet.data.shards.layout import INDEX_SCHEMA, shard_name
from raydet.data.shards.manifest import INDEX, MANIFEST, Encoding
from raydet.data.shards.reader import ShardSet
from raydet.data.shards.writer import ChannelSums, ShardBuilder, read_part
from raydet.errors import DataError
from tests.unit.data.shards.sets import column, forged, image, sealed, write_set

SHARD = shard_name(0)


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
@pytest.mark.parametrize("is_float", [False, True])
def test_round_trip_to_the_last_bit(encoding: Encoding, is_float: bool, tmp_path: Path) -> None:
    # Sizes that leave rows of floats at odd places; one image without a box.
    samples = [image(f"{i}", boxes=i, is_float=is_float and i != 1, size_hw=(5, 7 + i)) for i in range(4)]
    write_set(samples, tmp_path, encoding)
    source = ShardSet(str(tmp_path))
    for index in (3, 0, 2, 1):
        expected, found = samples[index], source.read(index)
        assert (found.image_id, found.group_id, found.source_hw, found.valid_hw) == (
            expected.image_id,
            "a group",
            expected.source_hw,
            expected.source_hw,
        )
        assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
        assert torch.equal(found.labels, expected.labels)
        for name in ("rgb", "thermal"):
            assert found.modalities[name].dtype == expected.modalities[name].dtype
            assert torch.equal(found.modalities[name], expected.modalities[name])


def test_equal_data_have_equal_content_whatever_the_encoding(tmp_path: Path) -> None:
    samples = [image("a"), image("b")]
    raw, zstd = write_set(samples, tmp_path / "raw"), write_set(samples, tmp_path / "zstd", "zstd")
    other = write_set(samples[::-1], tmp_path / "other")
    assert raw.content_sha256 == zstd.content_sha256 != other.content_sha256
    assert len({raw.sha256, zstd.sha256, other.sha256}) == 3


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    samples = [image(f"{i}", is_float=i == 1, size_hw=(5 + i, 6)) for i in range(3)]
    found = write_set(samples, tmp_path).modalities
    rgb = torch.cat([s.modalities["rgb"].flatten(1) for s in samples], dim=1).double() / 255
    thermal = torch.cat(
        [
            t.flatten().double() / (255 if t.dtype == torch.uint8 else 1)
            for t in (s.modalities["thermal"] for s in samples)
        ]
    )
    np.testing.assert_allclose(found["rgb"].mean, rgb.mean(dim=1), rtol=1e-12)
    np.testing.assert_allclose(found["rgb"].std, rgb.std(dim=1, correction=0), rtol=1e-9)
    np.testing.assert_allclose(found["thermal"].mean, [thermal.mean()], rtol=1e-12)
    np.testing.assert_allclose(found["thermal"].std, [thermal.std(correction=0)], rtol=1e-9)


def test_statistics_do_not_depend_on_the_number_of_threads() -> None:
    images = torch.rand(4, 512, 640)
    found = set()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            sums = ChannelSums()
            for pixels_HW in images:
                sums.add(pixels_HW)
            found.add(tuple(sums.as_row()))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_an_image_that_is_refused_is_not_counted() -> None:
    good, bad = image("good"), image("bad")
    bad = replace(bad, modalities={**bad.modalities, "thermal": bad.modalities["rgb"]})
    summaries = []
    for samples in ([good], [good, bad]):
        builder = ShardBuilder(("rgb", "thermal"), "raw", num_classes=3)
        builder.add(samples[0])
        for sample in samples[1:]:
            with pytest.raises(DataError, match="bad: expected 1 channels of thermal"):
                builder.add(sample)
        summaries.append(read_part(builder.finish(plan="", left_out=())[1])[1])
    assert summaries[0] == summaries[1]


def test_a_label_of_no_class_is_refused() -> None:
    builder = ShardBuilder(("rgb", "thermal"), "raw", num_classes=2)
    with pytest.raises(DataError, match=r"three boxes: expected labels in 0\.\.1, got \[0, 1, 2\]"):
        builder.add(image("three boxes", boxes=3))


def test_a_relative_path_is_that_of_the_process_that_opened_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set([image("a")], tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    travelled = pickle.dumps(ShardSet("set"))
    monkeypatch.chdir("/")
    assert pickle.loads(travelled).read(0).image_id == "a"


def test_travels_as_its_path(tmp_path: Path) -> None:
    write_set([image(f"{i}") for i in range(50)], tmp_path)
    source = ShardSet(str(tmp_path), missing=("thermal",))
    source.read(0)
    travelled = pickle.dumps(source)
    assert len(travelled) < 600
    copy = pickle.loads(travelled)
    assert copy.modalities == ("rgb",)
    assert torch.equal(copy.read(49).modalities["rgb"], source.read(49).modalities["rgb"])


def test_ids_are_sequences_that_are_read_when_looked_at(tmp_path: Path) -> None:
    write_set([image(f"image {i}") for i in range(5)], tmp_path)
    source = ShardSet(str(tmp_path))
    assert list(source.image_ids) == [f"image {i}" for i in range(5)]
    assert source.image_ids[-1] == "image 4"
    assert source.image_ids[1:3] == ["image 1", "image 2"]
    assert list(source.group_ids) == ["a group"] * 5
    assert source.group_ids[0] is source.group_ids[4]
    with pytest.raises(IndexError):
        source.image_ids[5]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        tree = json.loads((root / MANIFEST).read_text())
        change(tree)
        (root / MANIFEST).write_text(json.dumps(tree))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: flip_a_bit(root / SHARD), f"{SHARD}: expected sha256"),
        (lambda root: flip_a_bit(root / INDEX), f"{INDEX}: expected sha256"),
        (lambda root: (root / SHARD).write_bytes((root / SHARD).read_bytes()[:-9]), "bytes, the file has"),
        (lambda root: (root / SHARD).unlink(), f"{SHARD}: No such file"),
        (lambda root: (root / MANIFEST).unlink(), "manifest.json does not exist"),
        (lambda root: (root / MANIFEST).write_text("{"), "expected JSON"),
        (lambda root: (root / MANIFEST).write_text("[" * 10**6), "expected JSON"),
        (in_manifest(lambda tree: tree.update(schema_version=3)), "expected schema_version 2, got 3"),
        (in_manifest(lambda tree: tree.update(classes=["a", "b", "c"])), "it was altered"),
        (in_manifest(lambda tree: tree.update(left_out=3)), "it was altered"),
        (in_manifest(lambda tree: tree["shards"][0].update(name="../x.arrow")), "shards.0.name"),
        (in_manifest(lambda tree: tree.pop("boxes")), "boxes: Field required"),
    ],
)
def test_what_was_altered_is_refused(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    write_set([image("a"), image("b")], tmp_path)
    ShardSet(str(tmp_path)).read(1)  # what was verified once is looked at again where it has changed
    spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        ShardSet(str(tmp_path)).read(1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_set_in_its_place_is_refused(tmp_path: Path) -> None:
    before = write_set([image("a")], tmp_path)
    write_set([image("b")], tmp_path)
    with pytest.raises(DataError, match="expected the set with sha256"):
        ShardSet(str(tmp_path), sha256=before.sha256)


def wild_offsets(offsets: list[int]) -> pa.Array:
    """Binary values that claim bytes which are not theirs."""
    return pa.Array.from_buffers(
        pa.large_binary(), 2, [None, pa.py_buffer(np.array(offsets, "<i8")), pa.py_buffer(b"abc")]
    )


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rgb.channels", [3, 4]),
        ("rgb.channels", [3, 1]),
        ("rgb.channels", [3, -1]),
        ("rgb.channels", [3, 2**31 - 1]),
        ("rgb.value_bytes", [1, 2]),
        ("rgb.value_bytes", [1, 4]),
        ("rgb", [b"", b""]),
        ("rgb", wild_offsets([0, 2**40, 3])),
        ("rgb", wild_offsets([0, -(2**40), 3])),
        ("rgb", wild_offsets([0, 3, 1])),
    ],
)
def test_a_forged_shard_is_refused_by_row(
    encoding: Encoding, name: str, values: object, tmp_path: Path
) -> None:
    manifest = write_set([image("a"), image("b")], tmp_path, encoding)
    forged(tmp_path, manifest, SHARD, column(name, values))
    with pytest.raises(DataError) as caught:
        ShardSet(str(tmp_path)).read(1)
    assert SHARD in str(caught.value)
    assert "row 1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_zstd_bomb_is_not_unpacked(tmp_path: Path) -> None:
    manifest = write_set([image("a"), image("b")], tmp_path, "zstd")
    bomb = pa.Codec("zstd").compress(bytes(2**28), asbytes=True)
    forged(tmp_path, manifest, SHARD, column("rgb", [bomb, bomb]))
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DataError, match=f"{SHARD}, row 1"):
        ShardSet(str(tmp_path)).read(1)
    assert pa.default_memory_pool().max_memory() - before < 2**20


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("height", [7, 2**30], "invalid image size"),
        ("height", [7, 0], "invalid image size"),
        ("labels", [[0, 1], [0, 3]], "a label of one of 3"),
        ("labels", [[0, 1], [0, -5]], "a label of one of 3"),
        ("labels", [[0, 1], [0]], "four finite numbers"),
        ("boxes_xyxy", [[0.0] * 8, [0.0] * 7 + [float("nan")]], "four finite numbers"),
        ("boxes_xyxy", [[0.0] * 8, [float("inf")] * 8], "four finite numbers"),
    ],
)
def test_a_forged_index_is_refused_by_row(name: str, values: object, message: str, tmp_path: Path) -> None:
    manifest = write_set([image("a"), image("b")], tmp_path)
    forged(tmp_path, manifest, INDEX, column(name, values))
    with pytest.raises(DataError, match=message) as caught:
        ShardSet(str(tmp_path)).read(1)
    assert f"{INDEX}, row 1" in str(caught.value)


def test_an_index_of_other_columns_is_refused(tmp_path: Path) -> None:
    manifest = write_set([image("a")], tmp_path)
    forged(tmp_path, manifest, INDEX, lambda batch: batch.select(INDEX_SCHEMA.names[:-1]))
    with pytest.raises(DataError, match="expected one batch of the columns"):
        ShardSet(str(tmp_path))


@pytest.mark.parametrize("name", [SHARD, INDEX])
def test_a_file_that_arrow_would_unpack_is_refused(name: str, tmp_path: Path) -> None:
    manifest = write_set([image("a"), image("b")], tmp_path)
    batch = pa.ipc.open_file(tmp_path / name).get_batch(0)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(tmp_path / name, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    sealed(tmp_path, manifest)
    with pytest.raises(DataError, match=f"{name}: columns must not be compressed"):
        ShardSet(str(tmp_path)).read(0)


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"\x80\x04K\x01."], ids=["empty", "cut", "pickle"])
def test_no_arrow_file_is_refused(content: bytes, tmp_path: Path) -> None:
    manifest = write_set([image("a")], tmp_path)
    (tmp_path / SHARD).write_bytes(content)
    sealed(tmp_path, manifest)
    with pytest.raises(DataError, match="expected an Arrow file"):
        ShardSet(str(tmp_path)).read(0)
