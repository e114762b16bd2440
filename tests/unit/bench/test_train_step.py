"""`raydet bench train-step`: the report, regardless of times."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from raydet.bench.train_step import Run, StepReport, bench_train_step, random_batch
from raydet.cli.bench import bench, lines_of
from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError
from raydet.recipes import recipe

app = typer.Typer()
app.add_typer(bench, name="bench")


def small(**overrides: object) -> Experiment:
    return apply_overrides(recipe("demo"), {"data.canvas_hw": [64, 64], **overrides})


@pytest.mark.slow
@pytest.mark.bf16
def test_the_report() -> None:
    report = bench_train_step(
        small(), batch_size=2, precisions=["fp32", "bf16"], against=["plain"], repeats=2, num_objects=3
    )
    assert [run.name for run in report.runs] == ["fp32", "bf16", "plain"]
    assert report.agreement is not None
    assert report.agreement.loss < 1e-6
    assert report.agreement.gradient < 1e-5
    fp32, bf16, plain = report.runs
    assert min(run.saved_bytes for run in report.runs) > 0
    assert bf16.images_per_s == pytest.approx(2 / bf16.step_s)
    assert set(fp32.faster_than) == {"plain"}
    assert plain.mfu is None
    assert fp32.mfu is not None
    assert fp32.mfu > 0
    assert list(fp32.phases_s) == [
        "forward: images",
        "forward: encoder",
        "forward: neck",
        "forward: head",
        "backward",
        "optimizer",
    ]
    assert report.forward_flops_per_image > 1e7
    assert report.process_peak_bytes > fp32.saved_bytes


@pytest.mark.slow
def test_block_checkpointing_saves_most_of_the_activations() -> None:
    saved = {
        mode: bench_train_step(
            small(**{"train.activation_checkpointing": mode}), batch_size=1, precisions=["fp32"], repeats=1
        )
        .runs[0]
        .saved_bytes
        for mode in ("none", "block")
    }
    assert saved["block"] < 0.75 * saved["none"]


def test_random_images_are_a_valid_batch() -> None:
    experiment = small()
    batch, again = (random_batch(experiment, 3, 5) for _ in range(2))
    assert torch.equal(batch.boxes_xyxy, again.boxes_xyxy)
    assert batch.boxes_xyxy.min() >= 0
    assert batch.boxes_xyxy.max() <= 64
    assert bool((batch.boxes_xyxy[..., 2:] > batch.boxes_xyxy[..., :2]).all())
    assert set(batch.labels.unique().tolist()) <= {0, 1, 2}
    assert random_batch(experiment, 1, 0).labels.shape == (1, 0)


def test_the_command_line() -> None:
    threads = str(torch.get_num_threads())
    arguments = ["bench", "train-step", "--recipe", "demo", "--set", "data.canvas_hw=[64,64]", "--batch", "1"]
    arguments += ["--precision", "fp32", "--repeats", "1", "--threads", threads, "--cpu", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["batch"] == 1
    assert found["runs"][0]["name"] == "fp32"


def test_the_report_as_text() -> None:
    run = Run(
        "fp32",
        0.5,
        4.0,
        0.25,
        2**30,
        3 * 2**30,
        4 * 2**30,
        {"plain": 1.5},
        {"backward": 0.4},
        {"aten::mm": 0.2},
    )
    report = StepReport(
        "demo", (64, 96), 2, 8, 5, "a CPU", "2.15", "none", 10**9, {"fp32": 1e11}, [run], None, 2**31
    )
    assert list(lines_of(report)) == [
        "demo: 2 x 64 x 96, 8 objects, checkpointing none; a CPU, torch 2.15",
        "forward 1.0 GFLOP per image; matrix peak fp32 100 GFLOP/s",
        "",
        "           step s  images/s    MFU  saved GiB  peak GiB  planned  median of 5",
        "fp32        0.500      4.00    25%      1.000      3.00     4.00  x1.50 plain",
        "whole process: 2.00 GiB at its peak",
        "",
        "fp32: breakdown of the time",
        f"  {'backward':58}    0.400 s 100.0%",
        "fp32: top operators of a profiled step",
        f"  {'aten::mm':69}  20.0%",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp16"], "--precision must be one or more of fp32, bf16, got 'fp16'"),
        (["--against", "seed"], "--against must be one or more of plain, seeds, got 'seed'"),
        (["--precision", "fp32,fp32"], "--precision must be one or more"),
    ],
)
def test_bad_choices_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["bench", "train-step", *arguments], catch_exceptions=False)


def test_masks_on_the_command_line() -> None:
    text = "bench train-step --recipe seg_demo --set data.canvas_hw=[64,64] --batch 1 --precision fp32"
    text += f" --against plain --repeats 1 --threads {torch.get_num_threads()} --cpu"
    result = CliRunner().invoke(app, text.split(), catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("seg_demo: 1 x 64 x 64, masks, checkpointing none; ")
    assert [line for line in lines if line.startswith("fp32 ") and line.endswith(" plain")]
    assert [line.split("  ")[1] for line in lines if line.startswith("  forward: ")] == [
        "forward: images",
        "forward: encoder",
        "forward: neck",
        "forward: head",
    ]
    assert lines[-1].startswith("largest relative difference to plain: losses ")
    assert "(fp64, 1 image); " in lines[-1]


@pytest.mark.parametrize(
    ("against", "message"),
    [
        (
            ["plain", "seeds"],
            "--against seeds: expected a recipe for boxes, .* got seg_demo with the head aspp; use ",
        ),
        (["plain"], "--batch: expected at least 2 images, .* the head aspp .* got 1; set --batch 2"),
    ],
)
def test_what_is_refused_for_masks(against: list[Any], message: str) -> None:
    experiment = apply_overrides(recipe("seg_demo"), {"model.head": {"kind": "aspp"}})
    with pytest.raises(ConfigError, match=message):
        bench_train_step(experiment, batch_size=1, precisions=["fp32"], against=against)
