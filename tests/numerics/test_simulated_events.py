"""A run with simulated events and every augmentation: it trains, goes on alike, and says what is simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydet.config import apply_overrides
from raydet.engine.process import run_process
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.report.drawings.attention import stream_names
from raydet.report.drawings.run import drawings_of_run
from raydet.runs.run_dir import claim_run_directory
from raydet.track.base import NullTracker
from raydet.track.runs import begin_run
from tests.unit.data.test_loader import EVERYTHING

pytestmark = pytest.mark.slow

NOTE = "The event modality is simulated from rgb, no camera has recorded it."
EXPERIMENT = apply_overrides(
    recipe("demo"),
    {
        "data.source": {
            "kind": "synthetic",
            "num_sequences": 6,
            "frames_per_sequence": 3,
            "size_hw": [64, 96],
        },
        "data.canvas_hw": [64, 96],
        "data.augmentation": EVERYTHING.augmentation.model_dump(mode="json"),
        "data.simulate_events": {"replaces_own": True},
        "train.epochs": 1,
        "train.global_batch": 4,
        "model.fusion": {"kind": "gaff"},
        "model.head.score_threshold": 0.0,  # so short a run finds nothing that it is sure of
    },
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("simulated")
    claim_run_directory(directory, EXPERIMENT)
    run_process(EXPERIMENT, run_dir=directory, world=World())
    return directory


def test_files_name_what_is_simulated(run_dir: Path) -> None:
    for name in ("model_info.json", "final_results.json"):
        assert json.loads((run_dir / name).read_text())["simulated"] == ["event"]


def test_images_say_so(run_dir: Path) -> None:
    images = drawings_of_run(run_dir, count=1)
    assert images[-1].name == "attention"
    assert all(image.caption.endswith(NOTE) for image in images)
    assert stream_names(EXPERIMENT) == ("rgb", "thermal + event (simulated)")


def test_the_tracker_is_told() -> None:
    noted: dict[str, object] = {}

    class Noting(NullTracker):
        def log_params(self, run_id: str, params: object) -> None:
            noted.update(params)  # type: ignore[call-overload]

    begin_run(Noting(), EXPERIMENT, name="a", identity="a")
    assert noted["data.simulated"] == "event"
    assert noted["data.simulate_events.threshold"] == 0.25
