"""Our readers against evlib's, on real recordings and on random ones."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from raydet.files.events.open import open_events
from raydet.files.events.recording import Events, joined
from tests.unit.files.events.encoders import (
    EVT2_HEADER,
    EVT3_HEADER,
    assert_equal,
    events_of,
    evt2_words,
    evt3_words,
    random_rows,
    write_raw,
)

evlib = pytest.importorskip("evlib", reason="evlib, of the extra `dev`, is not installed")


def read_by_evlib(path: Path) -> Events:
    table = evlib.load_events(str(path)).collect()
    return Events(
        table["t"].dt.total_microseconds().to_numpy(),
        table["x"].to_numpy().astype(np.uint16),
        table["y"].to_numpy().astype(np.uint16),
        (table["polarity"].to_numpy() > 0).astype(np.uint8),
    )


@pytest.mark.parametrize(
    ("name", "size_hw", "count", "first_us", "last_us"),
    [
        ("gen31_spinner_640x480_evt2.raw", (480, 640), 539_481, 1_317_888, 1_367_888),
        ("evk_gen41_driving_1280x720_evt3.raw", (720, 1280), 219_596, 11_718_656, 11_727_457),
    ],
)
def test_real_raw_files(
    shared_data: Path, name: str, size_hw: tuple[int, int], count: int, first_us: int, last_us: int
) -> None:
    found = open_events(shared_data / "raw_events" / name)
    assert (found.height, found.width) == size_hw
    assert (found.num_events, found.num_late, found.num_unplaced) == (count, 0, 0)
    assert (found.first_us, found.last_us) == (first_us, last_us)
    expected = read_by_evlib(shared_data / "raw_events" / name)
    assert_equal(found.between(first_us, last_us + 1), expected)
    middle_us = (first_us + last_us) // 2
    (inside,) = np.nonzero((expected.t_us >= middle_us) & (expected.t_us < middle_us + 1000))
    assert len(inside) > 10_000
    assert_equal(found.between(middle_us, middle_us + 1000), Events(*(column[inside] for column in expected)))


def test_a_third_decoder_finds_the_same_events(shared_data: Path) -> None:
    """But for its times, which are known to be wrong."""
    root = shared_data / "raw_events"
    found = joined(list(open_events(root / "evk_gen41_driving_1280x720.npy", (720, 1280)).blocks()))
    expected = joined(list(open_events(root / "evk_gen41_driving_1280x720_evt3.raw").blocks()))
    assert_equal(found._replace(t_us=expected.t_us), expected)


def test_real_arrays(shared_data: Path) -> None:
    counts = []
    for path in sorted((shared_data / "pedro_events" / "events").glob("*.npy")):
        found = open_events(path, (260, 346))
        expected = np.load(path)
        events = joined(list(found.blocks()))
        for values, column in zip(events, expected.T, strict=True):
            np.testing.assert_array_equal(values, column)
        assert found.num_late == 0
        assert found.last_us - found.first_us <= 40_001
        counts.append(found.num_events)
    assert (len(counts), min(counts), max(counts)) == (5, 2498, 38416)


@pytest.mark.parametrize("seed", range(3))
def test_random_raw_files(seed: int, tmp_path: Path) -> None:
    rows = random_rows(seed, 2000, start_us=4096)
    for header, width, words in (
        (EVT2_HEADER, 32, evt2_words(rows, Random(seed))),
        (EVT3_HEADER, 16, evt3_words(rows, Random(seed))),
    ):
        path = write_raw(tmp_path / f"{width}.raw", words, header=header, width=width)
        expected, found = read_by_evlib(path), joined(list(open_events(path).blocks()))
        assert_equal(found, events_of(rows))
        assert_equal(found, expected)
