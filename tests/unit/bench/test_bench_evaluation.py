"""`raydet bench evaluation`: the report, regardless of times."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from raydet.bench.evaluation import SetSize, is_equal, random_set
from raydet.cli import app
from raydet.metrics.coco import evaluate_coco

SIZE = ["--images", "20", "--detections", "10", "--classes", "3", "--repeats", "2"]


@pytest.mark.slow
def test_the_report() -> None:
    done = CliRunner().invoke(app, ["bench", "evaluation", *SIZE, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert report["size"] == {"images": 20, "detections": 10, "classes": 3}
    assert report["is_equal"]
    assert set(report["seconds"]) == set(report["peak_bytes"]) == {"raydet", "pycocotools"}
    assert 0 < report["ratio_low"] <= report["ratio"] <= report["ratio_high"]
    assert min(report["peak_bytes"].values()) >= report["set_bytes"] * 0.9 > 1e7


def test_differences_between_engines_are_detected() -> None:
    truth, rows, classes = random_set(SetSize(images=20, detections=10, classes=3))
    _, records = evaluate_coco(truth, rows, classes)
    rows[:, 5] += 1e-9
    _, others = evaluate_coco(truth, rows, classes)
    assert is_equal(records, records)
    assert not is_equal(records, others)
