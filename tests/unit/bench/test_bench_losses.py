"""The report on the losses of masks, regardless of times."""

from __future__ import annotations

from raydet.bench.segmentation_losses import LossSize, bench_losses


def test_the_report() -> None:
    size = LossSize(batch=2, canvas_hw=(40, 32), embedding=(8, 3, 3))
    report = bench_losses(size, rounds=2)
    assert len({line.name for line in report}) == 5
    for line in report:
        assert 0 < line.ratio_low <= line.ratio <= line.ratio_high
        assert line.peak_bytes > 0
        assert line.plain_peak_bytes > 0
