"""The peak is that of the run, not of what its process has done before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydet.train.peak_memory import PROCESS, watch_peak_memory

CPU = torch.device("cpu")
MB = 10**6


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="Linux only")
def test_an_earlier_peak_does_not_count() -> None:
    before = watch_peak_memory(CPU)
    torch.ones(300 * MB // 4)
    earlier = before()
    peak = watch_peak_memory(CPU)
    start = peak()
    torch.ones(100 * MB // 4)
    end = peak()
    assert earlier is not None
    assert start is not None
    assert end is not None
    assert end - start == pytest.approx(100 * MB, abs=20 * MB)
    assert earlier - start == pytest.approx(300 * MB, abs=20 * MB)


def test_where_the_peak_cannot_be_set_back_it_is_not_known(tmp_path: Path) -> None:
    assert watch_peak_memory(CPU, process=tmp_path / "nothing")() is None
