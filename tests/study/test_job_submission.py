"""Studies as Ray jobs on a real head with a token: `ray job submit -- python -m raydet.tune ...`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.study.conftest import TINY, names, tune_command
from tests.study.heads import RAY, Head, ray_head
from tests.study.test_on_ray import mlflow_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head with two CPUs, on which a stopped job has enough time to save."""
    with ray_head(tmp_path_factory.mktemp("head"), extra={"RAY_JOB_STOP_WAIT_TIME_S": "40"}) as started:
        yield started


def job(env: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run `ray job WORDS`."""
    return subprocess.run(
        [str(RAY), "job", *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=400
    )


def submit(
    env: Mapping[str, str], storage: Path, *arguments: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Submit the study from the project's directory."""
    sets = [word for path, value in TINY.items() for word in ("--set", f"{path}={value}")]
    command = ["python", "-m", "raydet.tune", "--space", "gaff_phase2", "--recipe", "demo", *sets]
    command += ["--storage", str(storage), *arguments]
    return job(env, "submit", "--working-dir", str(ROOT), *options, "--", *command)


def test_a_study_is_submitted_stopped_and_submitted_again(head: Head, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    first = submit(head.env, storage, options=("--submission-id", "first", "--no-wait"))
    assert first.returncode == 0, first.stdout + first.stderr
    deadline = time.monotonic() + 240
    while len(names(storage, "started")) < 2:
        assert time.monotonic() < deadline, job(head.env, "logs", "first").stdout
        time.sleep(0.2)
    stopped = job(head.env, "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert head.get("/api/jobs/first")["status"] == "STOPPED"
    logs = job(head.env, "logs", "first").stdout
    assert "controls: 4 trials, 0 finished already, 4 to run" in logs
    assert "[1/37] control_rgb  mAP " in logs
    assert "stopped by SIGTERM; the same command continues" in logs
    done = names(storage, "finished")
    assert done

    second = submit(head.env, storage, "--max-trials", "1")
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"controls: 4 trials, {len(done)} finished already, {4 - len(done)} to run" in second.stdout
    assert "by mAP" in second.stdout
    assert all(names(storage, "started")[name] == 1 for name in done)
    assert len(names(storage, "finished")) > len(done)
    assert set(names(storage, "finished").values()) == {1}
    runs = mlflow_runs(storage)
    finished = {name for name, (status, parent) in runs.items() if status == "FINISHED" and parent}
    assert finished == set(names(storage, "finished"))


def test_the_exit_code_of_a_job(head: Head, tmp_path: Path) -> None:
    submitted = submit(
        head.env, tmp_path, "--cpus-per-worker", "64", options=("--submission-id", "too-large")
    )
    assert submitted.returncode == 1  # Ray's exit code for any failure
    info = head.get("/api/jobs/too-large")
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 2)
    assert (
        "1 worker of 64 CPUs needs 64 CPUs on one node, the largest node of the cluster has 2 CPUs; "
        "nearest that fits: --cpus-per-worker 2" in submitted.stdout
    )
    assert not names(tmp_path, "started")


def test_requests_without_the_token_are_refused(head: Head, tmp_path: Path) -> None:
    without = head.without_token(tmp_path / "home")
    wrong = without | {"RAY_AUTH_TOKEN": "0" * 64}
    for env, words in (
        (without, ("submit", "--", "true")),
        (without, ("list",)),
        (without, ("stop", "first")),
        (wrong, ("submit", "--", "true")),
    ):
        refused = job(env, *words)
        assert refused.returncode != 0, refused.stdout
        assert "authentic" in (refused.stdout + refused.stderr).lower()


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (
            ["--gpu"],
            "1 worker of 1 GPU and 1 CPU needs 1 GPU, the cluster has 0 and does not scale; "
            "nearest that fits: --cpu",
        ),
        (
            ["--workers", "4", "--set", "train.global_batch=4"],
            "4 workers of 1 CPU each need 4 CPUs, the cluster has 2 and does not scale; "
            "nearest that fits: --workers 2",
        ),
    ],
)
def test_requests_beyond_the_cluster_are_refused(
    head: Head, tmp_path: Path, arguments: list[str], refusal: str
) -> None:
    assert refusal in head.refused(tmp_path, *arguments)


def test_nodes_are_awaited_no_longer_than_requested(head: Head, tmp_path: Path) -> None:
    refused = subprocess.run(
        tune_command(tmp_path, "--gpu", "--wait-minutes", "0.1"),
        env=head.env | {"RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "waiting for 1 worker of 1 GPU and 1 CPU, " in refused.stdout
    assert (
        "could not start within 0.1 min: the nodes have 0 GPUs and 2 CPUs; raise --wait-minutes"
        in refused.stderr
    )
    assert not names(tmp_path, "started")
