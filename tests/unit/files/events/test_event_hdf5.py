"""HDF5 recordings are read in another process; what is damaged or leads elsewhere is refused in a sentence."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydet.errors import ConfigError, DataError
from raydet.files.events.open import open_events
from raydet.files.events.recording import Events, joined
from tests.unit.files.events.encoders import assert_equal, events_of, random_rows

HAS_H5PY = all(importlib.util.find_spec(name) for name in ("h5py", "hdf5plugin"))
needs_h5py = pytest.mark.skipif(
    not HAS_H5PY, reason="h5py and hdf5plugin, the extra `events`, are not installed"
)
ROWS = random_rows(0, 1000)


def write(
    path: Path, *, rows: list[tuple[int, int, int, int]] = ROWS, codec: str = "zstd", **more: Any
) -> Path:
    """The layout of RVT and eTraM."""
    import h5py
    import hdf5plugin

    codecs = {
        "zstd": hdf5plugin.Zstd(),
        "blosc": hdf5plugin.Blosc(),
        "lz4": hdf5plugin.LZ4(),
        "gzip": {"compression": "gzip"},
    }
    with h5py.File(path, "w") as file:
        for column, (name, dtype) in enumerate((("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "<i2"))):
            values = np.array(rows).reshape(-1, 4)[:, column].astype(dtype)
            file.create_dataset(f"events/{name}", data=values, chunks=(256,), **codecs[codec])
        for name, value in more.items():
            file[name.replace("__", "/")] = value
    return path


def read(path: Path, size_hw: tuple[int, int] | None = None) -> Events:
    return joined(list(open_events(path, size_hw).blocks()))


@needs_h5py
@pytest.mark.parametrize("codec", ["zstd", "blosc", "lz4", "gzip"])
def test_events_come_back(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydet.files.events.hdf5.BLOCK", 300)
    found = open_events(write(tmp_path / "a_td.h5", codec=codec, events__height=480, events__width=640))
    assert (found.height, found.width, found.num_events) == (480, 640, 1000)
    assert_equal(joined(list(found.blocks())), events_of(ROWS))
    middle = int(events_of(ROWS).t_us[500])
    is_before = events_of(ROWS).t_us < middle
    assert_equal(found.between(0, middle), Events(*(column[is_before] for column in events_of(ROWS))))


@needs_h5py
def test_sizes_at_the_top_and_polarities_of_minus_one(tmp_path: Path) -> None:
    rows = [(t, x, y, 2 * p - 1) for t, x, y, p in ROWS]
    path = write(tmp_path / "a.h5", rows=rows, height=np.array([480]), width=np.array([640]))
    assert_equal(read(path), events_of(ROWS))


@needs_h5py
def test_dsec_adds_its_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "events.h5", t_offset=49_599_300_523, ms_to_idx=np.arange(3))
    found = open_events(path)
    assert (found.height, found.width) == (480, 640)
    expected = events_of(ROWS)
    assert_equal(joined(list(found.blocks())), expected._replace(t_us=expected.t_us + 49_599_300_523))


@needs_h5py
def test_a_file_without_a_size_needs_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with pytest.raises(DataError, match="does not tell the size of its sensor; give size_hw"):
        open_events(path)
    assert_equal(read(path, (480, 640)), events_of(ROWS))


@needs_h5py
def test_the_process_ends_with_the_recording(tmp_path: Path) -> None:
    found = open_events(write(tmp_path / "a.h5"), (480, 640))
    process = found.reader._process  # type: ignore[attr-defined]
    assert process.poll() is None
    del found
    assert process.poll() == 0


@needs_h5py
def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    """As libhdf5 does on a hostile file."""
    found = open_events(write(tmp_path / "a.h5"), (480, 640))
    os.kill(found.reader._process.pid, signal.SIGSEGV)  # type: ignore[attr-defined]
    with pytest.raises(
        DataError, match=r"a\.h5: the process that reads it ended with exit code -11; the file is"
    ):
        _ = found.num_events


@needs_h5py
def test_prophesees_own_files_are_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["CD/events"] = np.zeros(3, [("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
    with pytest.raises(
        DataError, match=r"is an HDF5 file of Prophesee \(CD/events\), whose codec ECF no package has"
    ):
        open_events(tmp_path / "a.hdf5")


@needs_h5py
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("events/x"), r"expected events/x as a list of integers, found None"),
        (lambda file: file.pop("events"), r"expected a group `events` with t, x, y, p, found \[\]"),
        (lambda file: replaced(file, "t", np.zeros(1000)), r"expected events/t as a list of integers"),
        (lambda file: replaced(file, "t", np.zeros(999, int)), r"expected t, x, y, p of one length, got .*'t': 999"),
        (lambda file: replaced(file, "p", np.full(1000, 7)), r"from event 0: expected p in -1\.\.1, got 7\.\.7"),
        (lambda file: replaced(file, "x", np.full(1000, 640)), r"expected x in 0\.\.639 on a sensor of 480 x 640"),
        (lambda file: replaced(file, "t", np.arange(1000)[::-1]), r"time runs backwards: 999 of 1000"),
        (lambda file: file.__setitem__("height", "tall"), r"expected height as one integer"),
        (lambda file: linked(file, "soft"), r"x is a link to elsewhere; copy the data into the file"),
        (lambda file: linked(file, "external"), r"x is a link to elsewhere"),
        (lambda file: stored_elsewhere(file), r"the data of events/x lie in another file"),
        (lambda file: claims_too_much(file), r"expected events, got 1099511627776 of them in \d+ bytes"),
    ],
)  # fmt: skip
def test_bad_files_are_told_in_a_sentence(change: Any, message: str, tmp_path: Path) -> None:
    import h5py

    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(DataError, match=message) as caught:
        _ = open_events(path, (480, 640)).num_events
    assert str(caught.value).startswith(f"{path}")
    assert "\n" not in str(caught.value)


def replaced(file: Any, name: str, values: np.ndarray) -> None:
    del file[f"events/{name}"]
    file[f"events/{name}"] = values


def linked(file: Any, kind: str) -> None:
    import h5py

    del file["events/x"]
    link = h5py.SoftLink("/events/y") if kind == "soft" else h5py.ExternalLink("other.h5", "/events/x")
    file["events/x"] = link


def stored_elsewhere(file: Any) -> None:
    del file["events/x"]
    file.create_dataset("events/x", (1000,), "<u2", external=[("/etc/hostname", 0, 2000)])


def claims_too_much(file: Any) -> None:
    for name in "txyp":
        del file[f"events/{name}"]
        file.create_dataset(f"events/{name}", (2**40,), "u1", chunks=(2**20,))


@needs_h5py
@pytest.mark.parametrize("size", [8, 100, 4000])
def test_a_file_that_is_cut(size: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", codec="gzip")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"expected an HDF5 file, got a broken one"):
        open_events(path, (480, 640))


@needs_h5py
def test_a_chunk_that_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", codec="gzip")
    import h5py

    with h5py.File(path) as file:
        chunk = file["events/t"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"events from 0 on cannot be read .*; the file is damaged, copy it again"
    ):
        _ = open_events(path, (480, 640)).num_events


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ConfigError, match=r"need h5py, it is not installed: pip install 'raydet\[events\]'"):
        open_events(tmp_path / "a.h5")
