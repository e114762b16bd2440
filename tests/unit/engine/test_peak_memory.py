"""The peak is that of the run, not of what its process has done before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raydet.engine.peak_memory import PROCESS, watch_peak_memory

CPU = torch.device("cpu")
MB = 10**6
MEASURE = """
import json, torch
from raydet.engine.peak_memory import watch_peak_memory
cpu = torch.device("cpu")
before = watch_peak_memory(cpu)
torch.ones(300_000_000 // 4)
earlier = before()
peak = watch_peak_memory(cpu)
start = peak()
torch.ones(100_000_000 // 4)
print(json.dumps([earlier, start, peak()]))
"""


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="Linux only")
def test_an_earlier_peak_does_not_count() -> None:
    # A process of its own: what other tests have left behind may be freed at any moment.
    found = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    earlier, start, end = json.loads(found.stdout)
    assert end - start == pytest.approx(100 * MB, abs=20 * MB)
    assert earlier - start == pytest.approx(300 * MB, abs=20 * MB)


def test_where_the_peak_cannot_be_set_back_it_is_not_known(tmp_path: Path) -> None:
    assert watch_peak_memory(CPU, process=tmp_path / "nothing")() is None
