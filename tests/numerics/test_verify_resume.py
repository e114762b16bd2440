"""Killed anywhere, on any number of workers, a run ends where it would have ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydet.cli import main
from raydet.cpu import num_cores
from raydet.errors import TrainingError
from raydet.recipes import recipe
from raydet.resilience.fault_injection import FAULT_PHASES
from raydet.verify.resume import ResumeCheck
from tests.numerics.conftest import busy_core

pytestmark = pytest.mark.slow

DEMO = [
    "--recipe",
    "demo",
    "--set",
    "data.source.num_sequences=8",
    "--set",
    "data.source.frames_per_sequence=4",
    "--set",
    "data.split.num_blocks=4",
    "--set",
    "train.global_batch=4",
    "--set",
    "model.backbone.drop_path_rate=0.1",
    "--set",
    "optim.ema_decay=0.99",
]


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    with pytest.raises(SystemExit) as caught:
        main(["verify", "resume", *DEMO, "--json", *arguments])
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    assert not caught.value.code, answer
    return answer


def check_same_bits(answer: dict[str, object], phases: list[str]) -> None:
    outcomes = answer["outcomes"]
    assert isinstance(outcomes, list)
    assert [outcome["phase"] for outcome in outcomes] == phases
    for outcome in outcomes:
        assert outcome["num_equal"] == outcome["steps"] >= 12
        assert outcome["num_different_weights"] == 0
        assert outcome["is_digest_right"]
        assert outcome["repeated_steps"] <= outcome["most_repeated_steps"]


@pytest.mark.skipif(num_cores() < 2, reason="one core: nothing races")
def test_the_same_bits_after_a_kill(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = ["save-commit"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with busy_core():
        check_same_bits(verify(capsys, "--steps", "12", "--phases", ",".join(phases)), phases)


def test_the_same_bits_on_three_workers(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the order of a sum over workers shows: a + b is b + a."""
    phases = ["backward"]
    settings = ["--set", "train.global_batch=6", "--set", "data.source.num_sequences=16"]
    check_same_bits(verify(capsys, *settings, "--workers", "3", "--phases", ",".join(phases)), phases)


@pytest.mark.exhaustive
def test_the_same_bits_wherever_it_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    check_same_bits(verify(capsys, "--steps", "12", "--phases", "all"), list(FAULT_PHASES))


@pytest.mark.exhaustive
def test_other_numbers_of_workers_see_the_same_samples_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    # SGD with small steps: AdamW makes rounding grow until a proposal changes sides
    settings = {
        "data.source.num_sequences": 12,
        "data.source.frames_per_sequence": 8,
        "data.canvas_hw": [64, 96],
        "train.global_batch": 12,
        "optim.kind": "sgd",
        "optim.lr": 1e-3,
        "optim.clip_norm": 1.0,
    }
    sets = [part for path, value in settings.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    answer = verify(capsys, *sets, "--steps", "50", "--workers", "4,2,3", "--phases", "update")
    assert isinstance(answer["outcomes"], list)
    (outcome,) = answer["outcomes"]
    assert outcome["steps"] >= 50
    assert outcome["is_digest_right"]
    assert 0 < outcome["max_relative"] <= 1e-5


def test_a_run_that_fails_is_quoted(tmp_path: Path) -> None:
    """Its log is deleted with the directory."""
    check = ResumeCheck(recipe("demo"), steps=4, workers=[1], directory=tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TrainingError, match=r"exit code 2:\n(.*\n)*.*config\.json"):
        check.run_undisturbed()
