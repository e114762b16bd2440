"""`raydet bench loader`: the report, and that the loader's memory does not grow."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from raydet.bench.loader import bench_loader, write_arrays
from raydet.cli.bench_loader import lines_of
from raydet.config import ShardsSource, apply_overrides
from raydet.data.build import adopt_source, open_source
from raydet.data.convert import convert
from raydet.recipes import recipe

SETS = {"data.source.num_sequences": 2, "data.source.frames_per_sequence": 4, "train.global_batch": 4}


@pytest.mark.slow
def test_ways_batches_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def counted() -> float:
        threads.append(torch.get_num_threads())
        return now()

    now = time.process_time
    monkeypatch.setattr("raydet.bench.loader.time.process_time", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        report = bench_loader(
            apply_overrides(recipe("demo"), SETS),
            num_images=8,
            size_hw=(64, 96),
            rounds=1,
            loader_processes=1,
            memory_processes=1,
            memory_epochs=6,
            with_step=False,
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}, "spinning threads take processor time"
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


def test_simulated_events_are_reported(tmp_path: Path) -> None:
    simulated = apply_overrides(recipe("demo"), {**SETS, "data.simulate_events": {"replaces_own": True}})
    convert(simulated.data, str(tmp_path / "set"))
    shards = adopt_source(recipe("demo"), ShardsSource(path=str(tmp_path / "set")))
    for number, experiment in enumerate((simulated, shards)):
        config, is_simulated = write_arrays(experiment.data, tmp_path / str(number), 2, (64, 96))
        assert is_simulated
        assert open_source(config).modalities == ("rgb", "thermal", "event")
