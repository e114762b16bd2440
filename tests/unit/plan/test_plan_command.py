"""`raydet plan`: text, JSON, table, one-line errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from raydet.cli.plan import plan
from raydet.errors import ConfigError

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(plan)

DEMO = ("--recipe", "demo")


def output_of(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*DEMO, *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_text() -> None:
    text = output_of()
    assert text.startswith("demo: mit_nano, canvas 96 x 128, fp32, activation checkpointing none\n")
    assert "1 x 80.00 GiB, single, global batch 8 (micro-batch 8 x 1), 50 objects per image" in text
    assert "of 80.00 GiB, fits\n" in text
    assert "largest micro-batch with these settings: 8 (of 8 images per GPU and step)" in text
    names = ["weights", "gradients", "optimizer state", "stage 1 rgb", "fusion 4", "FPN", "RPN", "RoI heads"]
    for name in [*names, "logits and targets", "workspace", "margin", "peak"]:
        assert f"\n{name} " in text


def test_json_is_consistent() -> None:
    answer: dict[str, Any] = json.loads(output_of("--json", "--gpus", "2", "--set", "train.micro_batch=2"))
    assert answer["peak_bytes"] == sum(row["bytes_at_peak"] for row in answer["rows"])
    assert [answer["strategy"], answer["micro_batch"], answer["accumulation"]] == ["ddp", 2, 2]
    assert [answer["largest_micro_batch"], answer["objects"], answer["fits"]] == [4, 50, True]
    assert answer["recommendation"]["settings"][-1] == "train.micro_batch=4"
    assert "table" not in answer


def test_too_little_memory_is_reported() -> None:
    text = output_of("--gpu-memory", "600MiB", "--set", "train.micro_batch=auto")
    assert "DOES NOT FIT" in text
    assert "largest micro-batch with these settings: none" in text
    assert "nothing fits: even one image at a time needs" in text


def test_auto_takes_the_largest() -> None:
    answer = json.loads(output_of("--json", "--set", "train.micro_batch=auto"))
    assert answer["micro_batch"] == answer["largest_micro_batch"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus", "0"), "the number of workers must be 1 or more, got 0"),
        (("--gpus", "3"), "train.global_batch 8 does not divide among 3 workers"),
        (("--gpu-memory", "80"), "--gpu-memory must be a size with its unit"),
        (("--objects", "-1"), "the number of objects per image must be 0 or more"),
        (("--set", "train.strategy=fsdp"), "train.strategy=fsdp requires several workers, got 1"),
        (("--set", "train.micro_batch=3"), "train.micro_batch 3 does not divide the 8 images"),
        (("--recipe", "nothing"), "unknown recipe 'nothing'"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        CliRunner().invoke(app, [*DEMO, *arguments], catch_exceptions=False)
    assert "\n" not in str(caught.value)
