"""Anomalies at the end of a run are the same at any number of workers, copied or sharded, and after kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydet.config import apply_overrides
from raydet.metrics.names import ANOMALY_METRICS
from raydet.recipes import recipe
from raydet.verify.resume import ResumeCheck
from tests.numerics.conftest import Launch

SETTINGS = {
    "data.source.num_train": 8,
    "data.source.num_val": 2,
    "data.source.num_calibration": 5,  # in batches of two: one worker has more than the other
    "data.source.num_test": 7,
    "train.epochs": 1,
    "train.eval_batch": 2,
    "train.sync_batch_norm": True,
    "task.anomaly": {"score": "heat"},  # takes both passes of the calibration
}


def test_workers_share_the_images(train: Launch) -> None:
    """The weights follow those of one worker up to rounding, and so do the metrics."""
    experiment = apply_overrides(recipe("anomaly_demo"), SETTINGS)
    alone = train(experiment, workers=1, name="alone")["final"]
    for strategy in ("ddp", "fsdp"):
        shared = train(apply_overrides(experiment, {"train.strategy": strategy}), workers=2, name=strategy)[
            "final"
        ]
        for metric in ANOMALY_METRICS:
            assert shared[metric.name] == pytest.approx(alone[metric.name], abs=2e-3), (strategy, metric.name)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(2,), (4, 2, 3)])
def test_kills_lose_nothing(workers: tuple[int, ...], tmp_path: Path) -> None:
    """In training, and as the evaluation starts that ends the run."""
    # Synchronised batch norms would see another number of images after each change.
    settings = {
        **SETTINGS,
        "data.source.num_train": 24,
        "train.global_batch": 12,
        "train.sync_batch_norm": False,
    }
    check = ResumeCheck(
        apply_overrides(recipe("anomaly_demo"), settings), steps=12, workers=workers, directory=tmp_path
    )
    check.run_undisturbed()
    expected = final_of(tmp_path / "straight")
    for phase in ("backward", "evaluate"):
        assert check.run_killed(phase).is_proof
        found = final_of(tmp_path / f"killed-{phase}")
        assert found.keys() == expected.keys()
        # Workers of another number round differently, and training takes these differences further.
        for metric in () if check.is_elastic else ANOMALY_METRICS:
            assert found[metric.name] == expected[metric.name], metric.name


def final_of(run_dir: Path) -> dict[str, float]:
    """The metrics at the end of a run."""
    final: dict[str, float] = json.loads((run_dir / "final_results.json").read_text())["final"]
    return final
