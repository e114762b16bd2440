"""`raydet score`, and the metrics that the config of a run asks for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from raydet.cli import main
from raydet.cli.spaces import load_space
from raydet.config import apply_overrides
from raydet.errors import EXIT_DATA, EXIT_USAGE, ConfigError
from raydet.recipes import recipe
from raydet.runs.results import RunResults
from raydet.track.runs import metrics_table
from raydet.tune.cells import grid_cells, trials_of
from raydet.tune.study import GridPhase
from raydet.tune.summary import summary_row
from raydet.tune.trial_status import TrialRecord
from tests.results import results_with

TRUTH: dict[str, Any] = {
    "images": [{"id": 7, "height": 100, "width": 100}, {"id": 3, "height": 100, "width": 100}],
    "categories": [{"id": 5, "name": "car"}, {"id": 2, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 0, 30, 60], "area": 1800, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [10, 10, 20, 20]},
    ],
}
FOUND: list[dict[str, Any]] = [
    {"image_id": 7, "category_id": 5, "bbox": [0, 0, 30, 60], "score": 0.9},
    {"image_id": 3, "category_id": 5, "bbox": [0, 0, 30, 60], "score": 0.8},
]
KAIST: dict[str, Any] = {
    "images": [{"id": 0, "im_name": "set06/V000/I00019"}, {"id": 1, "im_name": "set09/V000/I00019"}],
    "annotations": [
        {
            "image_id": 0,
            "category_id": 1,
            "bbox": [50, 50, 30, 60],
            "height": 60,
            "occlusion": 0,
            "ignore": 0,
        },
        {
            "image_id": 1,
            "category_id": 1,
            "bbox": [50, 50, 30, 60],
            "height": 60,
            "occlusion": 0,
            "ignore": 0,
        },
    ],
}


def written(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def scored(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["score", *arguments])
    output = capsys.readouterr()
    assert (caught.value.code or 0) == code, output.err
    if code:
        assert output.err.count("\n") == 1
        assert output.err.startswith("error: ")
    return output.err if code else output.out


def test_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path / "truth.json", TRUTH), written(tmp_path / "found.json", FOUND)
    text = scored(capsys, "coco", *files)
    assert text.splitlines()[0] == (
        "2 images, 2 objects, 2 detections; small up to an area of 32² px², large from 96² px² on"
    )
    assert "mAP_large   no objects in this bin" in text
    settings = ["--set", "evaluate.miss_rate=true", "--set", "evaluate.size_bins_fraction=[0.1, 0.4]"]
    found = json.loads(scored(capsys, "coco", *files, "--json", *settings))
    assert found["per_class"] == {"AP/person": 0.0, "AP/car": pytest.approx(1.0)}
    assert found["size_bins"]["edges"] == [0.1, 0.4]
    assert found["metrics"]["mAP_large"] == pytest.approx(1.0)
    # The person is too low; the car is found, and wrongly in one of two images.
    assert found["metrics"]["LAMR"] == pytest.approx(1e-10)


def test_the_published_coco_fixture(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_data / "coco_eval_fixture"
    files = (folder / f"instances_val2014_{name}.json" for name in ("100", "fakebbox100_results"))
    found = json.loads(scored(capsys, "coco", *map(str, files), "--json"))
    assert round(found["metrics"]["mAP"], 5) == 0.50458


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        ("{", FOUND, "truth.json: expected a COCO json, got a broken one"),
        ([], FOUND, "truth.json: expected a list of objects under 'images'"),
        (TRUTH | {"images": [{"file": "a"}]}, FOUND, "truth.json: entry 0 must have 'id', got 'file'"),
        (
            TRUTH | {"images": [{"id": 7}, {"id": 7}]},
            FOUND,
            "expected one or more unique ids, got 2, 1 of them",
        ),
        (
            TRUTH | {"images": [{"id": 7}]},
            FOUND,
            "truth.json: annotation 1 has the unknown id 3; known: 7 to 7",
        ),
        (TRUTH, TRUTH, "found.json: expected a list of objects"),
        (TRUTH, [FOUND[0], {"image_id": 7}], "found.json: entry 1 must have 'bbox', got 'image_id'"),
        (
            TRUTH,
            [FOUND[0] | {"image_id": 8}],
            "found.json: detection 0 has the unknown id 8; known: 3 to 7",
        ),
        (TRUTH, [FOUND[0] | {"category_id": 1}], "detection 0 has the unknown id 1; known: 2 to 5"),
        (
            TRUTH,
            [*FOUND, FOUND[0] | {"bbox": [0, 0, 3]}],
            "detection 2 must have 4 finite numbers, got [0, 0, 3]",
        ),
        (TRUTH, [FOUND[0] | {"score": "high"}], "detection 0 must have a finite number, got 'high'"),
        (TRUTH, [FOUND[0] | {"score": float("nan")}], "detection 0 must have a finite number, got nan"),
    ],
)
def test_bad_coco_files(
    truth: object, found: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path / "truth.json", truth), written(tmp_path / "found.json", found)
    assert message in scored(capsys, "coco", *files, code=EXIT_DATA)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs=3", "only task.* changes"),
        ("task.size_bins_px=[96, 32]", "must be two ascending numbers"),
        ("evaluate.size_bins_px=[32]", "size_bins_px.1: Field required"),
        ("task.size_bin_px=[1,2]", "did you mean task.size_bins_px?"),
        (
            'task={"kind": "detection", "size_bins_px": [1, 2], "size_bins_fraction": [0.1, 0.2]}',
            "exclude one another",
        ),
        ("evaluate.size_bins_fraction=[0.1,0.2]", "requires the height and width of every image"),
    ],
)
def test_bad_settings(setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = TRUTH | {"images": [{"id": 7}, {"id": 3}]}
    files = written(tmp_path / "truth.json", bare), written(tmp_path / "found.json", FOUND)
    assert message in scored(capsys, "coco", *files, "--set", setting, code=EXIT_USAGE)


def test_kaist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = (
        written(tmp_path / "truth.json", KAIST),
        written(tmp_path / "found.txt", "1,50,50,30,60,0.9\n"),
    )
    rates = json.loads(scored(capsys, "kaist", truth, found, "--json"))
    nothing = pytest.approx(1e-10)
    assert rates["as_published"] == {"all": nothing, "day": nothing, "night": None}
    assert rates["all_objects"] == {"all": pytest.approx(0.5), "day": nothing, "night": 1.0}
    text = scored(capsys, "kaist", truth, found)
    assert "lower is better" in text.splitlines()[0]
    assert text.splitlines()[-1] == "night  1.0000"


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (
            KAIST,
            "1,50,50,30,60\n",
            "line 1 must have 6 numbers: image,x,y,width,height,score; got '1,50,50,30,60'",
        ),
        (KAIST, "1,50,50,30,60,0.9\n1,5,5,3,6,high", "line 2 must have 6 numbers"),
        (KAIST, "3,50,50,30,60,0.9", "line 1 must have finite numbers and an image from 1 to 2"),
        (KAIST, "1,50,50,30,60,nan", "line 1 must have finite numbers"),
        (TRUTH, "", "truth.json: entry 0 must have 'im_name'"),
        (
            KAIST | {"annotations": [{"category_id": 1, "bbox": [0, 0, 1, 1]}]},
            "",
            "entry 0 must have 'height'",
        ),
    ],
)
def test_bad_kaist_files(
    truth: object, found: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path / "truth.json", truth), written(tmp_path / "found.txt", found)
    assert message in scored(capsys, "kaist", *files, code=EXIT_DATA)


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, truth = str(tmp_path / "missing"), written(tmp_path / "truth.json", KAIST)
    assert "No such file" in scored(capsys, "coco", missing, missing, code=EXIT_DATA)
    assert "No such file" in scored(capsys, "kaist", truth, missing, code=EXIT_DATA)


def test_a_run_computes_the_metrics_of_its_config(tmp_path: Path) -> None:
    settings = {
        "data.source.num_sequences": 5,
        "data.source.frames_per_sequence": 2,
        "train.epochs": 1,
        "train.global_batch": 2,
        "evaluate.size_bins_px": [16, 48],
        "evaluate.miss_rate": True,
        "evaluate.miss_rate_min_height_px": 10,
    }
    config = written(tmp_path / "config.json", apply_overrides(recipe("demo"), settings).to_json())
    run_dir = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "train",
                "--config",
                config,
                "--workers",
                "0",
                "--run-dir",
                str(run_dir),
                "--tracking-uri",
                "none",
            ]
        )
    assert not caught.value.code
    results = json.loads((run_dir / "final_results.json").read_text())
    assert results["task"]["size_bins"] == {"unit": "px", "edges": [16.0, 48.0]}
    assert 0.0 < results["final"]["LAMR"] <= 1.0
    assert "LAMR" in {row["metric"] for row in metrics_table(RunResults.parse(results))}
    with (run_dir / "metrics_per_epoch.csv").open(newline="") as file:
        assert [float(row["LAMR"]) for row in csv.DictReader(file)] == [results["final"]["LAMR"]]


def test_studies_know_the_miss_rate_and_may_be_decided_by_it() -> None:
    study = load_space("gaff_phase1", recipe("demo"), {"task.miss_rate": True})
    phase = next(phase for phase in study.phases if isinstance(phase, GridPhase))
    (trial, *_) = trials_of(study, grid_cells(study, phase, first_number=1), [0])
    record = TrialRecord(trial, "finished", results=results_with({"mAP": 0.5, "LAMR": 0.3}))
    row = summary_row(study, record)
    assert row["LAMR"] == 0.3
    assert study.decider.name == "mAP"
    decided = load_space("gaff_phase1", recipe("demo"), {"task.miss_rate": True, "task.metric": "LAMR"})
    assert not decided.decider.higher_is_better
    with pytest.raises(ConfigError, match="the task has no metric 'LAMR'"):
        load_space("gaff_phase1", recipe("demo"), {"task.metric": "LAMR"})
