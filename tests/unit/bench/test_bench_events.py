from __future__ import annotations

import json

import numpy as np
from typer.testing import CliRunner

from raydet.bench.events import SIZE_HW, plain_histogram, random_events
from raydet.cli import app
from raydet.ops.event_histogram import stacked_histogram


def test_both_build_the_same_histogram() -> None:
    events = random_events(20_000, seed=1)
    for halving in (False, True):
        found = stacked_histogram(*events, size_hw=SIZE_HW, halving=halving)
        np.testing.assert_array_equal(found, plain_histogram(events, halving))


def test_the_command_tells_rates() -> None:
    done = CliRunner().invoke(app, ["bench", "events", "--events", "20000", "--repeats", "2", "--json"])
    assert done.exit_code == 0, done.output
    halved, full = json.loads(done.stdout)
    assert halved["halving"]
    assert not full["halving"]
    for report in (halved, full):
        assert report["events"] == 20_000
        assert report["cells_that_differ"] == 0
        assert report["ratio_low"] <= report["ratio"] <= report["ratio_high"]
        assert set(report["seconds"]) == {"raydet", "plain"}
    done = CliRunner().invoke(app, ["bench", "events", "--events", "20000", "--repeats", "1"])
    assert "million events/s" in done.stdout
