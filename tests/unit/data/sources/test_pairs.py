from __future__ import annotations

import time
from pathlib import Path

from raydet.data.sources.pairs import paired
from raydet.data.sources.sieve import Sieve


def test_what_lacks_a_file_is_left_out_with_the_kinds_that_it_lacks() -> None:
    sieve = Sieve("skip")
    listings = {
        "rgb": {"a": Path("a.png"), "b": Path("b.png")},
        "thermal": {"a": Path("a.tif")},
        "label": {"a": Path("a.txt"), "c": Path("c.txt")},
    }
    good = paired(listings, where=Path("set"), remedy="add it", sieve=sieve)
    assert good == {"a": {"rgb": Path("a.png"), "thermal": Path("a.tif"), "label": Path("a.txt")}}
    assert [left.reason for left in sieve.left_out] == [
        "set: picture b has no thermal and label file; add it",
        "set: picture c has no rgb and thermal file; add it",
    ]


def test_many_holes_take_no_longer_each_than_few() -> None:
    """A search of all names for each of them took seconds."""
    sieve = Sieve("skip")
    listings = {"rgb": {f"{i:05}": Path(f"{i:05}.png") for i in range(10_000)}, "label": {}}
    started = time.process_time()
    assert paired(listings, where=Path("set"), remedy="", sieve=sieve) == {}
    assert time.process_time() - started < 1
    assert len(sieve.left_out) == 10_000
