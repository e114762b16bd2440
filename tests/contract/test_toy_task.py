"""A task that is defined outside raydet is trained, resumed, planned, studied, compared and reported."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raydet.cli import main
from raydet.config import Experiment, apply_overrides
from raydet.engine.process import run_process
from raydet.errors import ConfigError
from raydet.metrics.records import read_records, score
from raydet.parallel.collectives import World
from raydet.plan.fit import recommend
from raydet.plan.ledger import ledger
from raydet.recipes import recipe
from raydet.runs.results import EpochRow
from raydet.runs.run_dir import claim_run_directory
from raydet.tasks.build import build_task
from raydet.tune.journal import read_journal
from tests.contract import toy_task
from tests.study.conftest import TINY, environment

SPACE = Path(toy_task.__file__)
EXPERIMENT = toy_task.config(apply_overrides(recipe("demo"), TINY | {"train.epochs": 4}))


def train(run_dir: Path, *, killed_after: int | None = None) -> None:
    def publish(row: EpochRow) -> None:
        if row.epoch == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    claim_run_directory(run_dir, EXPERIMENT)
    run_process(EXPERIMENT, run_dir=run_dir, world=World(), task=toy_task.Majority(), publish=publish)


def test_it_trains_and_continues_after_a_kill_to_the_last_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)
    process = multiprocessing.get_context("spawn").Process(
        target=train, args=(killed,), kwargs={"killed_after": 2}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    train(killed)
    assert (killed / "metrics_per_batch.csv").read_text() == (whole / "metrics_per_batch.csv").read_text()
    weights = [
        json.loads((run_dir / "checkpoints" / "epoch_0004" / "manifest.json").read_text())["files"]
        for run_dir in (whole, killed)
    ]
    assert weights[0]["shard-00001-of-00001.safetensors"] == weights[1]["shard-00001-of-00001.safetensors"]
    results = json.loads((whole / "final_results.json").read_text())
    assert results["final"]["accuracy"] == score(read_records(whole), "accuracy")
    assert results["best"]["accuracy"] == max(row["accuracy"] for row in results["history"])


def test_without_its_code_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="the code of the task 'majority' is needed"):
        build_task(EXPERIMENT)


def test_it_is_planned() -> None:
    make_head = toy_task.Majority().build_head
    found = ledger(EXPERIMENT, world_size=1, strategy="single", micro_batch=2, make_head=make_head)
    assert 0 < found.activation_bytes < found.peak_bytes
    best = recommend(EXPERIMENT, world_size=2, memory_bytes=80 * 2**30, make_head=make_head)
    assert best.option.micro_batch == 1


@pytest.mark.ray
def test_it_is_studied_compared_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [part for path, value in TINY.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    command = [sys.executable, "-m", "raydet.tune", "--space", str(SPACE), "--recipe", "demo", *sets]
    options = ["--seeds", "3", "--storage", str(tmp_path), "--cpus-per-worker", "1", "--concurrency", "2"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment(), timeout=600
    )
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "majority"
    results = read_journal(directory).results()
    assert len(results) == 6
    assert all(0 <= (found.final["accuracy"] or 0.0) <= 1 for found in results.values())
    page = (directory / "report" / "report.html").read_text()
    assert "accuracy" in page
    assert "mAP" not in page
    wide, narrow = directory / "widths" / "exp_001_h16", directory / "widths" / "exp_002_h4"
    command = ["compare", str(wide), str(narrow), "--json"]
    with pytest.raises(SystemExit):
        main(command)  # raydet cannot know whether a setting changes what is measured
    assert "task.settings is {'hidden': 16} against {'hidden': 4}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([*command, "--anyway"])
    assert not caught.value.code
    assert len(json.loads(capsys.readouterr().out)["a"]) == 3


def test_raydet_has_no_word_of_it() -> None:
    source = Path(__file__).parents[2] / "raydet"
    assert [path for path in source.rglob("*.py") if "majority" in path.read_text().lower()] == []


def test_its_config_is_data(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(EXPERIMENT.to_json())
    assert Experiment.from_json(path.read_text(), where="here") == EXPERIMENT
