"""Masks in shards: the same bits back, checked like everything else; sets of boxes stay what they were."""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydet.cli import main
from raydet.config import ShardsSource
from raydet.data.build import open_source
from raydet.data.convert import convert
from raydet.data.shards.layout import MASK, shard_name
from raydet.data.shards.manifest import (
    INDEX,
    LEFT_OUT,
    MANIFEST,
    Encoding,
    FileEntry,
    Manifest,
    ModalityEntry,
    ShardEntry,
)
from raydet.data.shards.reader import ShardSet
from raydet.data.shards.writer import ShardBuilder
from raydet.data.sources.base import Source, Targets
from raydet.errors import ConfigError, DataError
from raydet.structures import IGNORE, Mask, Sample, mask_of
from tests.unit.data.masks import CLASSES, MaskSet, painted, shapes
from tests.unit.data.shards.sets import column, data, forged, image, write_set

SHARD = shard_name(0)


@st.composite
def masked(draw: st.DrawFn) -> Sample:
    """Random ids of a size that leaves rows of int16 at odd places."""
    size_hw = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    ids = torch.tensor([0, 1, 2, IGNORE])[torch.randint(0, 4, size_hw, generator=random)]
    return painted(ids.to(draw(st.sampled_from([torch.uint8, torch.int16]))), "")


@settings(max_examples=25, deadline=None)
@given(samples=st.lists(masked(), min_size=1, max_size=4), encoding=st.sampled_from(["raw", "zstd"]))
def test_round_trip_to_the_last_bit(samples: list[Sample], encoding: Encoding) -> None:
    with tempfile.TemporaryDirectory() as root:
        write_set(samples, Path(root), encoding)
        source = pickle.loads(pickle.dumps(ShardSet(root)))
        for index, sample in enumerate(samples):
            expected = mask_of(sample.target, "").ids_HW
            target, size_hw = source.targets(index)
            assert size_hw == sample.source_hw
            for found in (mask_of(target, "").ids_HW, mask_of(source.read(index).target, "").ids_HW):
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected)
            assert torch.equal(source.read(index).modalities["rgb"], sample.modalities["rgb"])


def test_a_changed_mask_changes_the_content(tmp_path: Path) -> None:
    sample = painted(shapes((24, 32), 0))
    changed = mask_of(sample.target, "").ids_HW.clone()
    changed[0, 0] = IGNORE
    manifests = [
        write_set([one], tmp_path / str(number), encoding)
        for number, (one, encoding) in enumerate(
            [(sample, "raw"), (sample, "zstd"), (replace(sample, target=Mask(changed)), "raw")]
        )
    ]
    assert manifests[0].content_sha256 == manifests[1].content_sha256 != manifests[2].content_sha256
    assert {manifest.target for manifest in manifests} == {"masks"}


def test_manifests_of_boxes_keep_their_bytes(tmp_path: Path) -> None:
    manifest = Manifest.of(
        encoding="raw",
        classes=("a",),
        modalities={"rgb": ModalityEntry(channels=1, mean=(0.5,), std=(0.25,))},
        images=1,
        boxes={"a": 2},
        left_out=0,
        index=FileEntry(name=INDEX, sha256="1" * 64, size_bytes=3),
        shards=(ShardEntry(name=SHARD, sha256="2" * 64, size_bytes=4, images=1),),
        plan={},
    )
    # As written before there were masks.
    assert manifest.sha256 == "bfa8c3be33ddbe771fe3c3e08f1f7b3d333fc51816a2782270c7493642c5d835"
    assert manifest.content_sha256 == "1701d3254efece454e651146972a0920343caebe0d958db8195f2b783e08565f"
    text = manifest.to_json().encode()
    assert hashlib.sha256(text).hexdigest() == (
        "7eeb583a1ee66a9588cb913a7a31f1614c46976626f1dd1950b029474e4e91e0"
    )
    assert Manifest.parsed(text, where="") == manifest
    write_set([image("a")], tmp_path)
    assert "target" not in json.loads((tmp_path / MANIFEST).read_text())


def converted(source: Source, root: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Manifest:
    monkeypatch.setattr("raydet.data.convert.open_source", lambda *_, **__: source)
    return convert(data(), str(root), images_per_shard=2, **options)


def test_a_source_with_masks_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = MaskSet(num_images=5)
    manifest = converted(source, tmp_path / "set", monkeypatch)
    assert (manifest.target, manifest.images, set(manifest.modalities)) == ("masks", 5, {"rgb", "thermal"})
    found = ShardSet(str(tmp_path / "set"), missing=("thermal",))
    for index in range(5):
        assert torch.equal(
            mask_of(found.read(index).target, "").ids_HW, mask_of(source.read(index).target, "").ids_HW
        )
    assert converted(source, tmp_path / "set", monkeypatch) == manifest
    with pytest.raises(ConfigError, match="annotations_sha256"):
        converted(MaskSet(num_images=5, first=1), tmp_path / "set", monkeypatch)
    monkeypatch.undo()
    again = data().model_copy(update={"source": ShardsSource(path=str(tmp_path / "set")), "classes": CLASSES})
    assert mask_of(open_source(again).targets(0)[0], "")
    assert convert(again, str(tmp_path / "again")).content_sha256 == manifest.content_sha256
    with pytest.raises(SystemExit) as caught:
        main(("data", "convert", str(tmp_path / "set"), str(tmp_path / "cli")))
    assert caught.value.code == 0
    assert "masks     of ground, box, disc" in capsys.readouterr().out


@dataclass(frozen=True, slots=True)
class Spoiled(MaskSet):
    """The third image's mask cannot be read."""

    def read(self, index: int) -> Sample:
        if index == 2:
            raise DataError("mask 2 is truncated")
        return MaskSet.read(self, index)


def test_a_mask_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="mask 2 is truncated"):
        converted(Spoiled(), tmp_path / "error", monkeypatch)
    manifest = converted(Spoiled(), tmp_path / "skip", monkeypatch, on_bad="skip")
    assert (manifest.images, manifest.left_out) == (5, 1)
    [line] = (tmp_path / "skip" / LEFT_OUT).read_text().splitlines()
    assert json.loads(line) == {"name": "image 2", "reason": "mask 2 is truncated"}


@dataclass(frozen=True, slots=True)
class Mixed(MaskSet):
    """The last image has boxes."""

    def targets(self, index: int) -> Targets:
        return image("").target if index == 5 else self.read(index).target, self.size_hw


def test_a_source_with_boxes_and_masks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="all images of a set must have boxes or all masks, got both"):
        converted(Mixed(), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids_HW: ids_HW[1:], r"expected a uint8 or int16 mask 24 x 32, got torch\.uint8 \(23, 32\)"),
        (lambda ids_HW: ids_HW.long(), r"expected a uint8 or int16 mask 24 x 32, got torch\.int64"),
        (
            lambda ids_HW: ids_HW.clamp(max=3),
            r"expected ids in 0\.\.2, 254 \(anomaly\) or 255 \(no label\) .* got \[0, 1, 2, 3\]",
        ),
        (lambda ids_HW: ids_HW.short() - 1, r"expected ids in 0\.\.2, 254 .* got \[-1, 0, 1, 254\]"),
    ],
)
def test_a_mask_that_is_none_is_refused(change: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    sample = painted(shapes((24, 32), 0), "bad")
    builder = ShardBuilder(("rgb", "thermal"), "raw", num_classes=3, target="masks")
    with pytest.raises(DataError, match=f"bad: {message}"):
        builder.add(replace(sample, target=Mask(change(mask_of(sample.target, "").ids_HW))))


def test_another_kind_of_target_is_refused() -> None:
    mask, boxes = painted(shapes((7, 9), 0), "a mask"), image("boxes")
    with pytest.raises(DataError, match="a mask: expected boxes as in earlier images, got masks"):
        ShardBuilder(("rgb", "thermal"), "raw", num_classes=3).add(mask)
    with pytest.raises(DataError, match="boxes: expected masks as in earlier images, got boxes"):
        ShardBuilder(("rgb", "thermal"), "raw", num_classes=3, target="masks").add(boxes)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (MASK, [bytes(24 * 32)] * 2, None),
        (MASK, [bytes(24 * 32), b"\x03" * (24 * 32)], r"expected ids in 0\.\.2, 254 or 255"),
        (MASK, [bytes(24 * 32), bytes(24 * 32 - 1)], "767 bytes, not 768"),
        (f"{MASK}.channels", [1, 2], "2 channels of 1-byte values"),
        (f"{MASK}.value_bytes", [1, 4], "1 channels of 4-byte values"),
        ("rgb.value_bytes", [1, 2], "3 channels of 2-byte values"),
    ],
)
def test_a_forged_mask_is_refused_by_row(
    name: str, values: object, message: str | None, tmp_path: Path
) -> None:
    manifest = write_set([painted(shapes((24, 32), number), str(number)) for number in (0, 1)], tmp_path)
    forged(tmp_path, manifest, SHARD, column(name, values))
    if message is None:
        assert not mask_of(ShardSet(str(tmp_path)).read(1).target, "").ids_HW.any()
        return
    with pytest.raises(DataError, match=message) as caught:
        ShardSet(str(tmp_path)).read(1)
    assert f"{SHARD}, row 1" in str(caught.value)


def test_a_set_that_claims_masks_must_have_them(tmp_path: Path) -> None:
    manifest = write_set([image("a")], tmp_path)
    forged(tmp_path, manifest.model_copy(update={"target": "masks"}), SHARD, lambda batch: batch)
    with pytest.raises(DataError, match=r"expected one batch of the columns .*mask"):
        ShardSet(str(tmp_path)).read(0)
