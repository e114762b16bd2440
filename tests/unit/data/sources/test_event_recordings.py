"""Recordings with boxes become the same frames in every format, by the rule for labels that the module states."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from raydet.cli import app
from raydet.config import NamedSplit
from raydet.data.build import adopt_source, detect_source, ignored_in, left_out_of, open_source
from raydet.data.shards.reader import ShardSet
from raydet.data.shards.writer import ShardBuilder
from raydet.data.sources import event_recordings
from raydet.data.sources.event_recordings import EventRecordings, WindowSettings, windows_of
from raydet.errors import ConfigError, DataError
from raydet.files.events.open import open_events
from raydet.ops.event_histogram import stacked_histogram
from raydet.recipes.demo import demo
from tests.unit.files.events.encoders import (
    EVT2_HEADER,
    EVT3_HEADER,
    Row,
    events_of,
    evt2_words,
    evt3_words,
    random_rows,
    write_dat,
    write_raw,
)

SETTINGS = WindowSettings(
    window_us=50_000,
    bins=10,
    clip=10,
    halving=False,
    first_label_us=100_000,
    label_gap_us=100_000,
    label_tolerance_us=5_000,
    min_side_px=5,
)
BOX = [
    ("t", "<i8"), ("x", "<f4"), ("y", "<f4"), ("w", "<f4"), ("h", "<f4"), ("class_id", "u1"), ("track_id", "<u4"),
    ("class_confidence", "<f4"),
]  # fmt: skip
needs_h5py = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("h5py", "hdf5plugin")),
    reason="h5py and hdf5plugin, the extra `events`, are not installed",
)


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    """t, x, y, w, h, class."""
    return np.array([(*row, 0, 1.0) for row in rows], BOX)


BOXES = boxes(
    (150_000, 10, 20, 30, 40, 1),
    (200_000, 99, 99, 9, 9, 0),  # too early after the last one
    (251_000, -10, 470, 30, 40, 0),  # leaves the sensor
    (251_000, 636, 5, 30, 40, 1),  # 4 px are left
    (251_000, 100, 100, 50, 60, 1),
)


def rows_of(seed: int = 0) -> list[Row]:
    rows = random_rows(seed, 4000, longest_gap_us=14_000)
    assert rows[-1][0] > 260_000
    return rows


def write(kind: str, root: Path, name: str, rows: list[Row], found: np.ndarray = BOXES) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    np.save(root / f"{name}_bbox.npy", found)
    match kind:
        case "dat":
            write_dat(root / f"{name}_td.dat", rows)
        case "npy":
            np.save(root / f"{name}_td.npy", np.array(rows))
        case "evt2":
            write_raw(root / f"{name}.raw", evt2_words(rows, Random(0)), header=EVT2_HEADER, width=32)
        case "evt3":
            write_raw(root / f"{name}.raw", evt3_words(rows, Random(0)), header=EVT3_HEADER, width=16)
        case "h5":
            import h5py

            with h5py.File(root / f"{name}_td.dat.h5", "w") as file:
                for column, values in zip("txyp", np.array(rows).T, strict=True):
                    file[f"events/{column}"] = values
                file["height"], file["width"] = 480, 640


def opened(root: Path, **changes: Any) -> EventRecordings:
    settings = replace(
        SETTINGS, **{name: value for name, value in changes.items() if hasattr(SETTINGS, name)}
    )
    others = {name: value for name, value in changes.items() if not hasattr(SETTINGS, name)}
    return EventRecordings(
        root, settings, **({"classes": ("car", "pedestrian"), "size_hw": (480, 640)} | others)
    )


@pytest.mark.parametrize("kind", ["dat", "npy", "evt2", "evt3", pytest.param("h5", marks=needs_h5py)])
def test_every_format_has_the_same_frames(kind: str, tmp_path: Path) -> None:
    rows = rows_of()
    write(kind, tmp_path, "day/seq_0", rows)
    source = opened(tmp_path)
    assert source.modalities == ("event",)
    start = rows[0][0]
    ends = [end for end in (50_000, 100_000) if end - 50_000 + 1 >= start] + [150_000, 200_000, 251_000]
    assert source.image_ids == [f"day/seq_0/{end}" for end in ends]
    assert set(source.group_ids) == {"day/seq_0"}
    events = events_of(rows)
    for index, end in enumerate(ends):
        sample = source.read(index)
        inside = (events.t_us > end - 50_000) & (events.t_us <= end)
        assert inside.sum() > 50
        expected = stacked_histogram(*(column[inside] for column in events), size_hw=(480, 640))
        np.testing.assert_array_equal(sample.modalities["event"].numpy(), expected)
        assert sample.source_hw == sample.valid_hw == sample.canvas_hw == (480, 640)
        assert sample.is_labelled == source.is_labelled(index) == (end in (150_000, 251_000))
        assert len(sample.labels) == (0 if not sample.is_labelled else 1 if end == 150_000 else 2)
    assert source.read(len(ends) - 1).boxes_xyxy.tolist() == [[0, 470, 20, 480], [100, 100, 150, 160]]
    assert source.read(len(ends) - 1).labels.tolist() == [0, 1]
    assert source.read(len(ends) - 3).boxes_xyxy.tolist() == [[10, 20, 40, 60]]
    assert dict(source.ignored) == {"at times that end no window": 1, "smaller than 5 px in the image": 1}
    copied = pickle.loads(pickle.dumps(source))
    assert torch.equal(copied.read(2).modalities["event"], source.read(2).modalities["event"])


def test_halving_halves_the_boxes_too(tmp_path: Path) -> None:
    write("dat", tmp_path, "a", rows_of())
    full, half = opened(tmp_path), opened(tmp_path, halving=True)
    last = len(full) - 1
    assert torch.equal(
        half.read(last).modalities["event"], full.read(last).modalities["event"][:, 1::2, 1::2]
    )
    assert half.read(last).boxes_xyxy.tolist() == [[0, 235, 10, 240], [50, 50, 75, 80]]
    assert half.read(last).source_hw == (240, 320)


def labelled_of(times_us: list[int], **changes: int) -> tuple[list[int], list[int]]:
    """Ends of windows, and those of them that have labels."""
    found = windows_of(np.array(times_us, np.int64), 0, replace(SETTINGS, **changes))
    return found.ends_us.tolist(), found.ends_us[found.is_labelled].tolist()


def test_labels_of_30_and_60_hz_are_thinned_to_10() -> None:
    for rate in (30, 60):
        times = [round(number * 1e6 / rate) for number in range(1, 2 * rate)]
        ends, labelled = labelled_of(times)
        assert 17 <= len(labelled) <= 20
        assert all(abs(gap - 100_000) <= 1 for gap in np.diff(labelled))
        assert set(labelled) <= set(times)
        assert all(abs(gap - 50_000) <= 1 for gap in np.diff(ends))


def test_jitter_does_not_add_up() -> None:
    """A clock that is 3 % slow, which a fixed grid would lose after two labels."""
    times = [103_000 * number for number in range(1, 50)]
    ends, labelled = labelled_of(times)
    assert labelled == times
    assert ends == sorted(ends)


def test_labels_between_windows_are_left_out() -> None:
    ends, labelled = labelled_of([120_000, 245_000, 320_000, 394_000, 425_000, 826_000, 1_221_000])
    assert labelled == [120_000, 320_000, 425_000, 826_000, 1_221_000]
    assert labelled_of([120_000, 225_001])[1] == [120_000]
    assert ends[:6] == [70_000, 120_000, 170_000, 220_000, 270_000, 320_000]
    assert ends[-1] == 1_221_000


def test_the_first_labels_and_windows() -> None:
    assert labelled_of([99_999, 100_000]) == ([50_000, 100_000], [100_000])
    assert labelled_of([99_999]) == ([], [])
    assert labelled_of([99_000, 149_000], first_label_us=0)[1] == [99_000]
    assert labelled_of([99_000, 149_000], first_label_us=0, label_gap_us=0)[1] == [99_000, 149_000]
    assert labelled_of([149_999])[0] == [49_999, 99_999, 149_999]
    assert labelled_of([149_998])[0] == [99_998, 149_998]  # before 49,998 a whole window does not fit


def test_parts_come_from_directories(tmp_path: Path) -> None:
    for number, name in enumerate(("train/a", "train/b", "val/a", "test/c")):
        write("dat", tmp_path, name, rows_of(number))
    experiment = adopt_source(demo(), detect_source(f"event_recordings:{tmp_path}?classes=gen1"))
    assert experiment.data.classes == ("car", "pedestrian")
    assert set(experiment.data.missing) == {"rgb", "thermal"}
    assert experiment.data.split == NamedSplit()
    source = open_source(experiment.data)
    assert sorted(set(source.group_ids)) == ["test/c", "train/a", "train/b", "val/a"]
    assert ignored_in(source) == {"at times that end no window": 4, "smaller than 5 px in the image": 4}
    assert type(experiment).from_json(experiment.to_json(), where="here") == experiment


def test_classes_must_be_named(tmp_path: Path) -> None:
    write("dat", tmp_path, "a", rows_of())
    with pytest.raises(ConfigError, match="classes"):
        detect_source(f"event_recordings:{tmp_path}")
    spec = f'event_recordings:{tmp_path}?classes=["car","pedestrian"]&halving=true&window_ms=25'
    assert len(open_source(adopt_source(demo(), detect_source(spec)).data)) > 5


@needs_h5py
def test_dsec(tmp_path: Path) -> None:
    import h5py

    rows = rows_of()
    (tmp_path / "train/city_1/events/left").mkdir(parents=True)
    (tmp_path / "train/city_1/object_detections/left").mkdir(parents=True)
    with h5py.File(tmp_path / "train/city_1/events/left/events.h5", "w") as file:
        for column, values in zip("txyp", np.array(rows).T, strict=True):
            file[f"events/{column}"] = values
        file["t_offset"], file["ms_to_idx"] = 7_000_000, np.arange(4)
    found = BOXES.copy()
    found["t"] += 7_000_000
    np.save(tmp_path / "train/city_1/object_detections/left/tracks.npy", found)
    source = opened(tmp_path, size_hw=None)
    assert source.image_ids[-1] == "train/city_1/7251000"
    write("dat", tmp_path / "other", "a", rows)
    plain = opened(tmp_path / "other")
    assert torch.equal(
        source.read(len(source) - 1).modalities["event"], plain.read(len(plain) - 1).modalities["event"]
    )


def test_without_labels_all_windows_are_there(tmp_path: Path) -> None:
    write("dat", tmp_path, "a", rows_of())
    (tmp_path / "a_bbox.npy").unlink()
    source = opened(tmp_path, is_labelled=False)
    recording = open_events(tmp_path / "a_td.dat")
    assert len(source) == -(-(recording.last_us - recording.first_us + 1) // 50_000)
    assert not any(source.is_labelled(index) for index in range(len(source)))
    total = sum(
        len(recording.between(int(name[2:]) - 49_999, int(name[2:]) + 1).t_us) for name in source.image_ids
    )
    assert total == recording.num_events


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "a_bbox.npy").unlink(), r"a_bbox\.npy: expected a \.npy array, No such file"),
        (lambda root: np.save(root / "a_bbox.npy", boxes((150_000, 1, 1, 9, 9, 2))),
         r"a_bbox\.npy: expected class ids in 0\.\.1 \(car, pedestrian\), got 2; set data\.source\.classes"),
        (lambda root: np.save(root / "a_bbox.npy", boxes((10**17, 1, 1, 9, 9, 1))),
         r"expected boxes of the time of the events, which begin at \d+ us, got one at 100000000000000000 us"),
        (lambda root: write_dat(root / "a_td.dat", []), r"a_td\.dat: expected events, found none"),
        (lambda root: (root / "a_td.dat").write_bytes((root / "a_td.dat").read_bytes()[:-3]), r"is truncated"),
        (lambda root: np.save(root / "a_bbox.npy", boxes((50_000, 1, 1, 9, 9, 1))), r"found no window; check"),
        (lambda root: (root / "a_td.dat").unlink(), r"expected recordings .* found no window"),
        (lambda root: write("npy", root, "a", rows_of()), r"a_td\.\w+: expected one file of the name a_td, got"),
    ],
)  # fmt: skip
def test_bad_sets_are_told_in_a_sentence(change: Any, message: str, tmp_path: Path) -> None:
    write("dat", tmp_path, "a", rows_of())
    change(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_recordings_may_be_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write("dat", tmp_path, name, rows_of())
    (tmp_path / "a_bbox.npy").write_bytes(b"no array")
    source = opened(tmp_path, on_bad="skip")
    assert set(source.group_ids) == {"b"}
    assert [each.name for each in left_out_of(source)] == ["a"]


def test_labels_after_the_end(tmp_path: Path) -> None:
    write("dat", tmp_path, "a", rows_of(), boxes((150_000, 1, 1, 9, 9, 1), (3_150_000, 1, 1, 9, 9, 1)))
    source = opened(tmp_path)
    assert source.read(0) is not None
    with pytest.raises(
        DataError, match=r"its last event is at \d+ us, its boxes go on to 3150000 us; copy it again"
    ):
        source.read(len(source) - 1)


def test_windows_in_order_read_every_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydet.files.events.dat.BLOCK", 300)
    write("dat", tmp_path, "a", rows_of())
    source = opened(tmp_path)
    recording = event_recordings._opened(tmp_path / "a_td.dat", (480, 640), os.getpid())
    read, blocks = recording.reader.read, []
    monkeypatch.setattr(
        recording.reader,
        "read",
        lambda block, state: blocks.append(block) or read(block, state),  # type: ignore[func-returns-value]
    )
    for index in range(len(source)):
        source.read(index)
    assert blocks == sorted(set(blocks))
    assert len(blocks) > 5


def test_shards_keep_which_windows_are_labelled(tmp_path: Path) -> None:
    write("dat", tmp_path / "set", "a", rows_of())
    source = opened(tmp_path / "set")
    spec = f"event_recordings:{tmp_path / 'set'}?classes=gen1"
    done = CliRunner().invoke(app, ["data", "convert", spec, str(tmp_path / "shards")])
    assert done.exit_code == 0, done.output
    shards = ShardSet(str(tmp_path / "shards"))
    assert shards.ignored == dict(source.ignored)
    assert list(shards.image_ids) == source.image_ids
    for index in range(len(source)):
        expected, found = source.read(index), shards.read(index)
        assert found.is_labelled == expected.is_labelled
        assert torch.equal(found.modalities["event"], expected.modalities["event"])
        assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
        assert torch.equal(found.labels, expected.labels)
    assert {shards.read(index).is_labelled for index in range(len(source))} == {True, False}


def test_an_unlabelled_window_with_boxes_is_not_stored(tmp_path: Path) -> None:
    write("dat", tmp_path, "a", rows_of())
    source = opened(tmp_path)
    sample = source.read(len(source) - 1)
    builder = ShardBuilder(("event",), "zstd", num_classes=2)
    with pytest.raises(DataError, match="expected no boxes in an image that is not labelled, got 2"):
        builder.add(replace(sample, is_labelled=False))


def test_pedro(shared_data: Path) -> None:
    """Real windows of 40 ms, each in a file, with nine persons in YOLO rows."""
    spec = (
        f'event_recordings:{shared_data / "pedro_events"}?classes=["person"]&size_hw=[260,346]&window_ms=41'
    )
    source = open_source(adopt_source(demo(), detect_source(spec)).data)
    assert len(source) == 5
    boxes = 0
    for index, image_id in enumerate(source.image_ids):
        sample = source.read(index)
        assert sample.is_labelled
        boxes += len(sample.labels)
        assert sample.modalities["event"].shape == (20, 260, 346)
        rows = np.load(shared_data / "pedro_events" / f"{image_id.rpartition('/')[0]}.npy")
        expected = stacked_histogram(*events_of(rows.tolist()), size_hw=(260, 346))
        np.testing.assert_array_equal(sample.modalities["event"].numpy(), expected)
        xml = (shared_data / "pedro_events/labels_voc" / f"{image_id.split('/')[1]}.xml").read_text()
        corners = [
            [float(value) for value in re.findall(rf"<{name}>([\d.]+)<", xml)]
            for name in ("xmin", "ymin", "xmax", "ymax")
        ]
        np.testing.assert_allclose(
            np.sort(sample.boxes_xyxy.numpy(), axis=0), np.sort(np.array(corners).T, axis=0), atol=1.01
        )
    assert boxes == 9
