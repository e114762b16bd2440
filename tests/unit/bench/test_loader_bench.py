"""The bench of the loader measures what it says, and the loader's memory does not grow."""

from __future__ import annotations

import pytest

from raydet.bench.loader import bench_loader
from raydet.cli.bench_loader import lines_of
from raydet.config import apply_overrides
from raydet.recipes import recipe


def test_ways_batches_and_memory() -> None:
    sets = {"data.source.num_sequences": 2, "data.source.frames_per_sequence": 4, "train.global_batch": 4}
    report = bench_loader(
        apply_overrides(recipe("demo"), sets),
        num_images=8,
        size_hw=(64, 96),
        rounds=1,
        loader_processes=1,
        memory_processes=1,
        memory_epochs=6,
        with_step=False,
    )
    assert not report.is_event_simulated
    assert report.ways[0].of_seeds == 1.0
    bytes_per_image = {way.name: way.bytes_per_image for way in report.ways}
    assert bytes_per_image["npy, uint8"] == 5 * 64 * 96 + 128
    assert 5 * 64 * 96 <= bytes_per_image["raw shards"] < 5 * 64 * 96 + 2000
    assert bytes_per_image["zstd shards"] < bytes_per_image["raw shards"]
    assert [batch.encoding for batch in report.batches] == ["raw", "zstd"]
    assert len(report.memory_bytes) == 6
    assert report.memory_growth == pytest.approx(0, abs=0.05)
    assert len(list(lines_of(report))) == 8
