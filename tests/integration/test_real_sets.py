"""Every real set goes the whole way: converted, checked, trained on for one epoch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from raydet.errors import EXIT_OK

pytestmark = pytest.mark.slow

CANVAS = ("--set", "data.canvas_hw=[96,128]", "--set", "train.global_batch=4", "--set", "train.eval_batch=4")


def raydet(*arguments: str) -> str:
    command = [sys.executable, "-m", "raydet", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == EXIT_OK, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("data", "images", "boxes"),
    [
        ("coco:{}/roadscene_flir", 77, 528),
        ("yolo:{}/msrs?labels=rgb", 38, 98),
        ("yolo:{}/msrs?labels=thermal", 38, 266),
        ("yolo:{}/msrs?labels=fused", 38, 211),
        ("voc:{}/llvip", 8, 30),
    ],
)
def test_converted_checked_and_trained(
    data: str, images: int, boxes: int, shared_data: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    raydet("data", "convert", data.format(shared_data), str(shards))
    manifest = json.loads((shards / "manifest.json").read_text())
    assert (manifest["pictures"], sum(manifest["boxes"].values())) == (images, boxes)
    raydet("data", "check", f"shards:{shards}", "--output", str(tmp_path / "check"))
    run = tmp_path / "run"
    arguments = ("train", "--recipe", "demo", "--data", f"shards:{shards}", "--epochs", "1", *CANVAS)
    raydet(*arguments, "--workers", "0", "--run-dir", str(run), "--tracking-uri", "none")
    with (run / "metrics_per_epoch.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["epoch"] == "1"
