"""After losing a node, a run continues with the workers that still fit, and grows again when a node joins."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raydet.checkpoint.manifest import read_state
from raydet.checkpoint.retention import newest_checkpoint
from raydet.config import Experiment
from raydet.data.build import open_source
from raydet.data.digest import expected_digest
from raydet.data.sampler import ElasticSampler
from raydet.data.split import split_indices
from raydet.errors import EXIT_PREEMPTED
from tests.study.conftest import TINY, environment

pytestmark = [pytest.mark.ray, pytest.mark.exhaustive]

EPOCHS = 10_000
SETTINGS = TINY | {
    "train.epochs": EPOCHS,
    "train.eval_every": EPOCHS,
    "train.micro_batch": 1,
    "train.global_batch": 6,
    "data.source.num_sequences": 8,
    "data.source.frames_per_sequence": 4,
}


@pytest.fixture
def nodes() -> Iterator[subprocess.Popen[str]]:
    """`three_nodes.py` as a subprocess."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("three_nodes.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    yield process
    process.communicate(timeout=180)


def wait_for(driver: subprocess.Popen[str], seconds: float, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def send(nodes: subprocess.Popen[str], command: str) -> None:
    assert nodes.stdin is not None
    nodes.stdin.write(f"{command}\n")
    nodes.stdin.flush()


def test_training_shrinks_and_grows_with_the_cluster(nodes: subprocess.Popen[str], tmp_path: Path) -> None:
    assert nodes.stdout is not None
    address = nodes.stdout.readline().strip()
    run_dir = tmp_path / "run"
    sets = [part for path, value in SETTINGS.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    command = [sys.executable, "-m", "raydet", "train", "--recipe", "demo", "--workers", "3", *sets]
    command += ["--min-workers", "1", "--cpus-per-worker", "1", "--checkpoint-steps", "2"]
    command += ["--run-dir", str(run_dir), "--tracking-uri", "none"]
    driver = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | {"RAY_ADDRESS": address, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
    )

    def is_training_with(workers: int) -> bool:
        """Whether it has saved since it started with so many workers."""
        info = run_dir / "model_info.json"
        newest = max((path.stat().st_mtime for path in run_dir.glob("checkpoints/epoch_*")), default=0.0)
        return (
            info.exists()
            and json.loads(info.read_text())["workers"] == workers
            and newest > info.stat().st_mtime
        )

    try:
        wait_for(driver, 120, lambda: is_training_with(3))
        send(nodes, "kill")
        wait_for(driver, 180, lambda: is_training_with(2))
        send(nodes, "add")
        wait_for(driver, 180, lambda: is_training_with(3))
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=180)
    finally:
        driver.kill()
    assert driver.returncode == EXIT_PREEMPTED, output
    checkpoint = newest_checkpoint(run_dir)
    assert checkpoint is not None
    state = read_state(checkpoint)
    assert 0 < state["lost_s"] < 180
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(state["step"]))
    experiment = Experiment.from_json((run_dir / "config.json").read_text(), where="the run")
    source = open_source(experiment.data)
    train = split_indices(source, experiment.data.split)["train"]
    sampler = ElasticSampler(len(train), experiment.train.global_batch, experiment.seed)
    image_ids = [source.image_ids[index] for index in train]
    assert state["digest"] == expected_digest(sampler, image_ids, steps=state["step"])
