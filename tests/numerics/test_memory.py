"""Memory that ends, memory that is planned, and a worst-case dry run that leaves no trace."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raydet.checkpoint.diff import compare_checkpoints
from raydet.config import Experiment, apply_overrides
from raydet.engine import worst_case
from raydet.engine.process import run_process
from raydet.errors import OutOfMemoryError
from raydet.parallel.collectives import World
from raydet.plan.ledger import ledger
from raydet.recipes import recipe
from raydet.resilience import out_of_memory as memory
from raydet.runs.run_dir import claim_run_directory

EXPERIMENT = apply_overrides(
    recipe("demo"),
    {
        "data.source.num_sequences": 6,
        "data.source.frames_per_sequence": 2,
        "data.split.num_blocks": 3,
        "train.global_batch": 4,
        "train.epochs": 2,
        "train.eval_every": 2,
    },
)


def run(run_dir: Path, experiment: Experiment = EXPERIMENT) -> list[dict[str, str]]:
    """Train; the rows of all steps."""
    claim_run_directory(run_dir, experiment)
    run_process(experiment, run_dir=run_dir, world=World())
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_dry_run_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = run(tmp_path / "plain")
    monkeypatch.setattr(worst_case, "LONG_RUN_STEPS", 1)
    with caplog.at_level("INFO", logger="raydet"):
        assert run(tmp_path / "dry") == plain
    assert "the worst batch fits" in caplog.text
    first, second = (tmp_path / name / "checkpoints" / "epoch_0002" for name in ("plain", "dry"))
    assert compare_checkpoints(first, second).is_empty


def test_auto_takes_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = apply_overrides(EXPERIMENT, {"train.micro_batch": "auto"})
    peaks = [
        ledger(
            auto, world_size=1, strategy="single", micro_batch=size, num_objects=12, device_type="cpu"
        ).peak_bytes
        for size in (1, 2, 4)
    ]
    for limit_bytes, wanted in ((peaks[2] * 2, 4), ((peaks[1] + peaks[2]) // 2, 2)):
        monkeypatch.setattr(memory, "memory_bytes", lambda *_, limit=limit_bytes, **__: limit)
        found = run(tmp_path / str(wanted), auto)
        by_hand = run(
            tmp_path / f"{wanted}-by-hand", apply_overrides(EXPERIMENT, {"train.micro_batch": wanted})
        )
        assert found == by_hand
    monkeypatch.setattr(memory, "memory_bytes", lambda *_, **__: peaks[0] // 2)
    with pytest.raises(OutOfMemoryError, match="one image at a time does not fit"):
        run(tmp_path / "none", auto)


NO_MEMORY = """
import resource, sys
from pathlib import Path
import psutil
import torch
from raydet.config import Experiment
from raydet.errors import OutOfMemoryError
from raydet.parallel.collectives import World
from raydet.engine.process import run_process

experiment = Experiment.from_json(Path(sys.argv[1]).read_text(), where="test")
torch.set_num_threads(1)  # the stacks of threads count, too
limit = psutil.Process().memory_info().vms + 700 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    run_process(experiment, run_dir=Path(sys.argv[2]), world=World())
except OutOfMemoryError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
def test_out_of_memory_in_plain_words(tmp_path: Path) -> None:
    """The real thing: the process may take no more than 700 MiB, a step wants more."""
    experiment = apply_overrides(
        EXPERIMENT,
        {"data.canvas_hw": [768, 1024], "data.source.size_hw": [96, 128], "model.backbone.variant": "b0"},
    )
    config = tmp_path / "config.json"
    config.write_text(experiment.to_json())
    claim_run_directory(tmp_path / "run", experiment)
    ended = subprocess.run(
        [sys.executable, "-c", NO_MEMORY, str(config), str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 4, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert line.startswith("rank 0: out of memory in the forward pass of 4 images (")
    assert "this process holds" in line
    assert "what helps: " in line
    assert "train.activation_checkpointing=block" in line
    assert line.count("(saves about") == 3
