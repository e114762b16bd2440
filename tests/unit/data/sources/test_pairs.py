"""Files that belong together by their names."""

from __future__ import annotations

from pathlib import Path

from raydet.data.sources.bad_samples import BadSamples
from raydet.data.sources.pairs import paired


def test_what_lacks_a_file_is_left_out_with_the_kinds_that_it_lacks() -> None:
    bad_samples = BadSamples("skip")
    listings = {
        "rgb": {"a": Path("a.png"), "b": Path("b.png")},
        "thermal": {"a": Path("a.tif")},
        "label": {"a": Path("a.txt"), "c": Path("c.txt")},
    }
    good = paired(listings, where=Path("set"), remedy="add it", bad_samples=bad_samples)
    assert good == {"a": {"rgb": Path("a.png"), "thermal": Path("a.tif"), "label": Path("a.txt")}}
    assert [left.reason for left in bad_samples.left_out] == [
        "set: image b has no thermal and label file; add it",
        "set: image c has no rgb and thermal file; add it",
    ]
