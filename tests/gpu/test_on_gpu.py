"""What only a GPU can show: its kernels, its memory, its bf16. Skipped where there is none."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from raydet.bench.train_step import bench_train_step
from raydet.config import Experiment, apply_overrides
from raydet.engine.process import run_process
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.results import EpochRow
from raydet.runs.run_dir import claim_run_directory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SMALL = {
    "data.source.num_sequences": 8,
    "data.source.frames_per_sequence": 2,
    "data.split.num_blocks": 4,
    "train.global_batch": 4,
    "train.epochs": 4,
}


def run(run_dir: Path, *, cut_after: int | None = None, **settings: Any) -> list[dict[str, str]]:
    """Train on the GPU; the rows of every step."""
    experiment = apply_overrides(recipe("demo"), {**SMALL, **settings})
    claim_run_directory(run_dir, experiment)

    def publish(row: EpochRow) -> None:
        if row.epoch == cut_after:
            raise InterruptedError

    try:
        run_process(experiment, run_dir=run_dir, world=World(device=torch.device("cuda", 0)), publish=publish)
    except InterruptedError:
        assert cut_after is not None
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(rows: list[dict[str, str]]) -> list[float]:
    return [float(row["loss"]) for row in rows]


def published(variant: str, **settings: Any) -> Experiment:
    changes = {"model.backbone.variant": variant, "data.canvas_hw": [320, 416], **settings}
    return apply_overrides(recipe("rgbte_mit_b1"), changes)


def test_the_step_is_the_plain_one() -> None:
    report = bench_train_step(
        published("b0"),
        batch_size=2,
        precisions=["fp32"],
        against=["plain"],
        repeats=1,
        device=torch.device("cuda", 0),
    )
    assert report.agreement is not None
    assert report.agreement.loss < 1e-6
    assert report.agreement.gradient < 1e-5


@pytest.mark.parametrize(
    ("precision", "checkpointing"), [("fp32", "none"), ("bf16", "none"), ("bf16", "block")]
)
def test_the_plan_is_what_a_step_takes(precision: Any, checkpointing: str) -> None:
    experiment = published("b1", **{"train.activation_checkpointing": checkpointing})
    report = bench_train_step(
        experiment, batch_size=8, precisions=[precision], repeats=1, device=torch.device("cuda", 0)
    )
    (step,) = report.runs
    assert step.peak_bytes is not None
    assert step.planned_bytes is not None
    assert 0.95 <= step.planned_bytes / step.peak_bytes <= 1.10


def test_an_exact_run_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    exact = {"train.exact": True}
    straight = run(tmp_path / "straight", **exact)
    run(tmp_path / "cut", cut_after=2, **exact)
    assert run(tmp_path / "cut", **exact) == straight


def test_bf16_learns_as_fp32_does(tmp_path: Path) -> None:
    fp32 = losses(run(tmp_path / "fp32", **{"train.epochs": 12}))
    bf16 = losses(run(tmp_path / "bf16", **{"train.epochs": 12, "train.precision": "bf16"}))
    assert len(fp32) == len(bf16)
    assert sum(bf16) == pytest.approx(sum(fp32), rel=0.05)
