"""A node of the cluster is killed: the run goes on with the workers that still find a place."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydet.config import Experiment
from raydet.data.build import open_source
from raydet.data.digest import expected_digest
from raydet.data.sampler import ElasticSampler
from raydet.data.split import split_indices
from tests.study.conftest import TINY, environment

pytestmark = [pytest.mark.ray, pytest.mark.exhaustive]

EPOCHS = 20
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
    """`three_nodes` as a process."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("three_nodes.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    yield process
    process.communicate(timeout=60)


def test_training_goes_on_without_the_node(nodes: subprocess.Popen[str], tmp_path: Path) -> None:
    assert nodes.stdout is not None
    assert nodes.stdin is not None
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
    deadline = time.monotonic() + 120
    while not list(run_dir.glob("checkpoints/epoch_*")):
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    nodes.stdin.write("kill\n")
    nodes.stdin.flush()
    try:
        output, _ = driver.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        driver.kill()
        raise AssertionError(driver.communicate()[0]) from None
    assert driver.returncode == 0, output
    results = json.loads((run_dir / "final_results.json").read_text())
    assert results["workers"] == 2
    assert 0 < results["lost_s"] < 120
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(len(steps)))
    experiment = Experiment.from_json((run_dir / "config.json").read_text(), where="the run")
    source = open_source(experiment.data)
    train, _ = split_indices(source, experiment.data.split)
    sampler = ElasticSampler(len(train), experiment.train.global_batch, experiment.seed)
    assert len(steps) == EPOCHS * sampler.steps_per_epoch
    image_ids = [source.image_ids[index] for index in train]
    assert results["digest"] == expected_digest(sampler, image_ids, steps=len(steps))
