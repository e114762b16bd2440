"""Killed anywhere, on any number of workers, a run ends where it would have ended."""

from __future__ import annotations

import json

import pytest

from raydet.cli import main

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
]


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    with pytest.raises(SystemExit) as caught:
        main(["verify", "resume", *DEMO, "--json", *arguments])
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    assert not caught.value.code, answer
    return answer


def test_the_same_bits_wherever_it_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    answer = verify(capsys, "--steps", "12", "--phases", "all")
    outcomes = answer["outcomes"]
    assert isinstance(outcomes, list)
    assert [outcome["phase"] for outcome in outcomes] == [
        "load",
        "forward",
        "backward",
        "update",
        "save-write",
        "save-commit",
        "evaluate",
    ]
    for outcome in outcomes:
        assert outcome["num_equal"] == outcome["steps"] >= 12
        assert outcome["num_different_weights"] == 0
        assert outcome["is_digest_right"]
        assert outcome["repeated_steps"] <= outcome["interval_steps"]
