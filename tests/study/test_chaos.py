"""A study under random kills ends like an undisturbed one; `verify study` detects tampering."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raydet.resilience.fault_injection import FAULT_PHASES
from raydet.verify.chaos import TARGETS
from raydet.verify.study import check_study
from tests.study.conftest import environment, tune_arguments

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raydet", "chaos", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(),
    )


@pytest.mark.slow
def test_nothing_is_lost_and_losses_would_be_detected(tmp_path: Path) -> None:
    result = chaos(
        *("--kills", "3", "--targets", "node,trial,driver", "--storage", str(tmp_path / "runs"), "--json"),
        *("--", "tune", *tune_arguments("two_stages"), "--set", "train.epochs=20"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["ok"]
    assert {kill["strike"]["fault"]["target"] for kill in report["kills"]} == {"node", "trial", "driver"}
    assert all(kill["recovery_s"] > 0 for kill in report["kills"])
    assert (
        report["study"]["num_finished"] == report["study"]["num_tracked"] == report["study"]["num_whole"] == 4
    )
    tamper_and_check(tmp_path / "runs" / "gaff")


@pytest.mark.exhaustive
def test_every_target_and_every_phase(tmp_path: Path) -> None:
    result = chaos(
        *("--kills", "14", "--storage", str(tmp_path / "runs"), "--json"),
        *("--", "tune", *tune_arguments("two_stages"), "--set", "train.epochs=200"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    faults = [kill["strike"]["fault"] for kill in json.loads(result.stdout)["kills"]]
    assert {fault["target"] for fault in faults} == set(TARGETS)
    assert {fault["phase"] for fault in faults} == set(FAULT_PHASES)


def tamper_and_check(study: Path) -> None:
    assert check_study(study).problems == []
    journal = study / "journal.jsonl"
    original = journal.read_text()
    finished = [line for line in original.splitlines() if json.loads(line)["event"] == "finished"]
    name = json.loads(finished[0])["name"]

    journal.write_text(original + finished[0] + "\n")
    assert check_study(study).problems == [f"{name} finished 2 times"]

    journal.write_text(original.replace(finished[0] + "\n", ""))
    assert f"{name} has started, but not finished" in check_study(study).problems
    assert f"{name} has finished according to summary_all_experiments.csv, but not to the journal" in (
        check_study(study).problems
    )

    journal.write_text(original.replace(json.loads(finished[0])["results"]["digest"], "0" * 64))
    assert f"{name}: samples were lost or repeated" in check_study(study).problems
    journal.write_text(original)

    (run_dir,) = study.glob(f"*/{name}")
    rows = (run_dir / "metrics_per_batch.csv").read_text().splitlines()
    (run_dir / "metrics_per_batch.csv").write_text("\n".join([*rows, rows[-1]]) + "\n")
    (problem,) = check_study(study).problems
    assert problem.startswith(f"{name}: metrics_per_batch.csv has {len(rows)} rows for {len(rows) - 1} steps")
    (run_dir / "metrics_per_batch.csv").write_text("\n".join(rows) + "\n")

    client = MlflowClient(f"sqlite:///{study.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gaff")
    (run,) = client.search_runs([experiment.experiment_id], filter_string=f"run_name = '{name}'")
    client.set_terminated(run.info.run_id, "KILLED")
    assert check_study(study).problems == [f"{name} has finished, but the tracker says killed"]
    client.delete_run(run.info.run_id)
    assert check_study(study).problems == [f"{name} is in the tracker 0 times"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "train"], "chaos: expected a study's command, e.g. tune --space gaff_phase1, got 'train'"),
        (
            ["--targets", "gpu", "tune"],
            "--targets: unknown 'gpu'; known: worker, node, trial, driver, preemption, all",
        ),
        (["--kills", "0", "tune"], "--kills must be at least 1, got 0"),
        (["--no-replace", "--kills", "3", "tune"], "--no-replace with 3 kills may take all 3 nodes"),
        (["tune", "--storage", "x"], "--storage must precede the study's command"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    result = chaos(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
