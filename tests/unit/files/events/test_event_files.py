"""What an independent encoder has written is read again; damaged files are refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydet.errors import DataError
from raydet.files.events import recording
from raydet.files.events.evt2 import decode_evt2, open_evt2
from raydet.files.events.evt3 import decode_evt3, open_evt3
from raydet.files.events.open import open_events
from raydet.files.events.recording import EventRecording, Events, State, joined
from tests.unit.files.events.encoders import (
    EVT2_HEADER,
    EVT3_HEADER,
    assert_equal,
    events_of,
    evt2_words,
    evt3_words,
    random_rows,
    write_dat,
    write_raw,
)

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, derandomize=True)


def whole(found: EventRecording) -> Events:
    return joined(list(found.blocks()))


def written(kind: str, path: Path, seed: int, count: int = 3000) -> tuple[Path, Events]:
    rows = random_rows(seed, count)
    match kind:
        case "dat":
            write_dat(path, rows)
        case "evt2":
            write_raw(path, evt2_words(rows, Random(seed)), header=EVT2_HEADER, width=32)
        case "evt3":
            write_raw(path, evt3_words(rows, Random(seed)), header=EVT3_HEADER, width=16)
        case "npy":
            with path.open("wb") as file:
                np.save(file, np.array(rows))
    return path, events_of(rows)


KINDS = ("dat", "evt2", "evt3", "npy")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_events_come_back(kind: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From several blocks, whole and by interval."""
    path, expected = written(kind, tmp_path / "recording", seed)
    for module in ("dat", "evt2", "evt3", "npy"):
        monkeypatch.setattr(f"raydet.files.events.{module}.BLOCK", 700)
    found = open_events(path, (480, 640))
    assert (found.height, found.width) == (480, 640)
    assert_equal(whole(found), expected)
    assert (found.num_events, found.num_late, found.num_unplaced) == (3000, 0, 0)
    assert (found.first_us, found.last_us) == (expected.t_us[0], expected.t_us[-1])
    random = Random(seed)
    for _ in range(20):
        start, end = sorted(random.randrange(-5, found.last_us + 5) for _ in range(2))
        inside = (expected.t_us >= start) & (expected.t_us < end)
        assert_equal(found.between(start, end), Events(*(column[inside] for column in expected)))
    assert_equal(found.between(found.first_us, found.last_us + 1), expected)
    assert len(found._cached) <= recording.CACHED_BLOCKS


@few
@given(seed=seeds)
def test_evt2_in_any_pieces(seed: int) -> None:
    """With a time that restarts on the way."""
    rows = random_rows(seed, 400, start_us=2**34 - 20_000)
    words = np.array(evt2_words(rows, Random(seed)), np.uint32)
    state: State = ()
    parts = []
    for piece in pieces_of(words, seed):
        found = decode_evt2(piece, state, "here")
        parts.append(found.events)
        state = found.state
    assert_equal(joined(parts), events_of(rows))


@few
@given(seed=seeds)
def test_evt3_in_any_pieces(seed: int) -> None:
    """With a time that restarts on the way."""
    rows = random_rows(seed, 400, start_us=2**24 - 20_000)
    words = np.array(evt3_words(rows, Random(seed)), np.uint16)
    state: State = ()
    parts = []
    for piece in pieces_of(words, seed):
        found = decode_evt3(piece, state, "here")
        parts.append(found.events)
        state = found.state
    assert_equal(joined(parts), events_of(rows))


def pieces_of(words: np.ndarray, seed: int) -> list[np.ndarray]:
    """Twelve cuts, some of them at one place."""
    random = Random(seed)
    return np.split(words, sorted(random.choices(range(len(words)), k=12)))


def test_the_time_of_a_dat_file_restarts_after_71_minutes(tmp_path: Path) -> None:
    rows = random_rows(0, 2000, start_us=2**32 - 10_000)
    assert_equal(whole(open_events(write_dat(tmp_path / "long.dat", rows))), events_of(rows))


def test_before_its_first_time_and_row_a_cut_stream_has_no_events(tmp_path: Path) -> None:
    words = [0x2 << 12 | 5, 0x4 << 12 | 0b111, 7, 0x2 << 12 | 6, 0x8 << 12 | 1, 0x2 << 12 | 9, 0x4 << 12 | 1]
    found = open_events(write_raw(tmp_path / "cut.raw", words, header=EVT3_HEADER, width=16))
    assert_equal(whole(found), events_of([(4096, 9, 7, 0)]))
    assert found.num_unplaced == 6
    words = [5 << 11, 0x8 << 28 | 2, 1 << 28 | 3 << 22 | 6 << 11 | 7]
    found = open_events(write_raw(tmp_path / "cut2.raw", words, header=EVT2_HEADER, width=32))
    assert_equal(whole(found), events_of([(131, 6, 7, 1)]))
    assert found.num_unplaced == 1


def test_vectors_that_run_out_of_the_sensor_do_not_come_back(tmp_path: Path) -> None:
    """5462 x 12 is 2^16 + 8."""
    words = [0x8 << 12, 7, 0x3 << 12, *[0x4 << 12] * 5462, 0x4 << 12 | 1]
    path = write_raw(tmp_path / "far.raw", words, header=EVT3_HEADER, width=16)
    with pytest.raises(DataError, match=r"expected x in 0\.\.639 on a sensor of 480 x 640 .*, got 65535"):
        whole(open_events(path))


def test_late_events_get_the_time_before_them(tmp_path: Path) -> None:
    times = [10, 20, 15, 30, 12, 29, 40]
    path = tmp_path / "late.npy"
    np.save(path, np.array([(t, 1, 2, 1) for t in times]))
    found = open_events(path, (4, 4))
    assert whole(found).t_us.tolist() == [10, 20, 20, 30, 30, 30, 40]
    assert found.num_late == 3
    assert found.between(20, 31).t_us.tolist() == [20, 20, 30, 30, 30]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2"])
def test_arrays_of_any_integers(
    order: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydet.files.events.npy.BLOCK", 60)
    rows = random_rows(1, 200)
    np.save(tmp_path / "a.npy", np.array(rows, dtype, order=order))
    assert_equal(whole(open_events(tmp_path / "a.npy", (480, 640))), events_of(rows))


def test_structured_arrays(tmp_path: Path) -> None:
    rows = random_rows(2, 200)
    table = np.zeros(200, [("x", "<i2"), ("extra", "<f8"), ("y", "<i2"), ("p", "i1"), ("t", "<i8")])
    for column, name in enumerate(("t", "x", "y", "p")):
        table[name] = np.array(rows)[:, column]
    table["p"] = 2 * table["p"] - 1  # some write -1
    np.save(tmp_path / "a.npy", table)
    assert_equal(whole(open_events(tmp_path / "a.npy", (480, 640))), events_of(rows))


def test_sizes_are_told_by_headers_or_given(tmp_path: Path) -> None:
    rows = random_rows(0, 20, size_hw=(240, 304))
    gen1 = write_dat(
        tmp_path / "a.dat", rows, header="% Data file\n% Version 2\n% Width 304\n% Height 240\n", kind=0
    )
    assert (open_events(gen1).height, open_events(gen1).width) == (240, 304)
    old = write_dat(tmp_path / "b.dat", rows, header="% Data file\n")
    assert (open_events(old, (260, 346)).height, open_events(old, (260, 346)).width) == (260, 346)
    with pytest.raises(
        DataError, match=r"b\.dat: the file does not tell the size of its sensor; give size_hw"
    ):
        open_events(old)
    with pytest.raises(
        DataError, match=r"has 240 x 304 pixels \(height x width\), got size_hw 260 x 346; leave"
    ):
        open_events(gen1, (260, 346))
    for plugin, size_hw in (
        ("hal_plugin_gen31_fx3", (480, 640)),
        ("hal_plugin_gen4_evk2", (720, 1280)),
        ("hal_plugin_imx636_evk4", (720, 1280)),
        ("hal_plugin_genx320", (320, 320)),
    ):
        raw = write_raw(tmp_path / "c.raw", [], header=f"% evt 3.0\n% plugin_name {plugin}\n", width=16)
        assert (open_events(raw).height, open_events(raw).width) == size_hw


DAT, EVT2, EVT3 = "% Version 2\n% Height 480\n% Width 640\n", EVT2_HEADER, EVT3_HEADER


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected a DAT or raw file of Prophesee, which begins with '% ', got b''"),
        (b"BM123", r"expected a recording \(DAT, raw EVT 2\.0 or 3\.0, HDF5, \.npy\), got a file that begins"),
        (b"#!AER-DAT4.0\r\n", r"is an AEDAT file, which raydet does not read; convert it"),
        (b"% Version 2", r"expected a header of lines, its last one does not end"),
        (DAT.encode() + b"\x0c", r"has become shorter since it was opened|truncated"),
        (DAT.encode() + b"\x0c\x08" + bytes(15), r"expected events of 8 bytes, the last one has 7; .* truncated"),
        (DAT.encode() + b"\x0e\x08" + bytes(16), r"expected events of type 0 \(2D\) or 12 .*, got type 14 of 8"),
        (b"% Version 1\n\x00\x08" + bytes(16), r"expected a DAT file of version 2, got 1"),
        (DAT.encode() + b"\x0c\x08", r"expected events, found none"),
        (EVT3.encode() + b"\x00", r"expected words of 2 bytes, the last one has 1; the file is truncated"),
        (EVT2.encode() + bytes(6), r"expected words of 4 bytes, the last one has 2; the file is truncated"),
        (EVT3.encode() + b"\x00\x90", r"from word 0: EVT 3\.0 has no words of type 0x9; the file is damaged"),
        (EVT2.encode() + b"\x00\x00\x00\x30", r"from word 0: EVT 2\.0 has no words of type 0x3"),
        (b"% evt 2.1\n% geometry 4x4\n", r"expected EVT 2\.0 or 3\.0, its header says EVT 2\.1"),
        (b"% format EVT21;height=4;width=4\n% end\n", r"expected EVT 2\.0 or 3\.0, its header says EVT 2\.1"),
        (DAT.encode() + b"\x0c\x08" + (0).to_bytes(4, "little") + (700).to_bytes(4, "little"),
         r"block 0: expected x in 0\.\.639 on a sensor of 480 x 640 \(height x width\), got 700"),
        (b"% Version 2\n% Height 0\n% Width 640\n\x0c\x08", r"expected a sensor of 1 to 16384 pixels a side, got 0"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_told_in_a_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.raw"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        _ = open_events(path).num_events
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_encodings_are_not_mixed_up(tmp_path: Path) -> None:
    """Words of EVT2 would pass for words of EVT3."""
    two = write_raw(tmp_path / "2.raw", [0x8 << 28], header=EVT2_HEADER, width=32)
    three = write_raw(tmp_path / "3.raw", [0x8 << 12], header=EVT3_HEADER, width=16)
    with pytest.raises(
        DataError, match=r"expected EVT 3\.0, its header says EVT 2\.0; open it as what it is"
    ):
        open_evt3(two)
    with pytest.raises(DataError, match=r"expected EVT 2\.0, its header says EVT 3\.0"):
        open_evt2(three)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((5, 3), int),
            r"expected integers \[N, 4\] \(t in microseconds, x, y, p\), .* got int64 \(5, 3\)",
        ),
        (np.zeros((5, 4)), r"expected integers \[N, 4\] .* got float64"),
        (np.zeros(5, [("t", "<i8"), ("x", "<f4"), ("y", "<i2"), ("p", "i1")]), r"expected integers \[N, 4\]"),
        (
            np.array([[0, 0, 0, 2]]),
            r"from event 0: expected p in -1\.\.1, got 2\.\.2; check that the columns",
        ),
        (np.array([[-1, 0, 0, 1]]), r"expected t in 0\.\."),
        (np.zeros((0, 4), int), r"expected events, found none"),
        (
            np.array([[t, 0, 0, 0] for t in (9, 8, 7, 6)]),
            r"time runs backwards: 3 of 4 events come after a later one",
        ),
    ],
)
def test_arrays_that_are_no_events(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=message):
        _ = open_events(tmp_path / "a.npy", (4, 4)).num_events


def test_an_array_that_is_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 4), int))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-3])
    with pytest.raises(
        DataError, match=r"expected 288 bytes for \(5, 4\) int64, the file has 285; it is truncated"
    ):
        open_events(tmp_path / "a.npy", (4, 4))
    with pytest.raises(DataError, match="expected a recording, No such file"):
        open_events(tmp_path / "none.raw")


@few
@given(content=st.binary(max_size=64), kind=st.sampled_from((DAT, EVT2, EVT3)))
def test_any_bytes_are_events_or_an_error(
    content: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.raw"
    path.write_bytes(kind.encode() + (b"\x0c\x08" if kind == DAT else b"") + content)
    try:
        found = whole(open_events(path))
    except DataError:
        return
    assert (np.diff(found.t_us) >= 0).all()
    assert len(found.t_us) > 0
