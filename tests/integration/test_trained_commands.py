"""`raydet evaluate`, `predict`, `robustness` and `bench inference` on a run that has trained for a moment."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from raydet.cli import main
from raydet.config import Experiment, apply_overrides
from raydet.data.sources.base import Source
from raydet.engine.open_run import evaluated, open_trained
from raydet.engine.process import run_process
from raydet.errors import ConfigError
from raydet.metrics.names import METRIC_NAMES
from raydet.models.build import build_model
from raydet.parallel.collectives import World
from raydet.plan.flops import forward_flops
from raydet.recipes import recipe
from raydet.report.robustness import measure_robustness
from raydet.runs.run_dir import claim_run_directory

SETTINGS = {
    "data.source": {"kind": "synthetic", "num_sequences": 6, "frames_per_sequence": 3},
    "data.split": {"kind": "first", "num_train": 8, "overfit": True},
    "train.epochs": 6,
    "train.global_batch": 4,
    "train.eval_every": 6,
    "train.eval_batch": 3,
    "optim.schedule.warmup_steps": 2,
    "model.head.score_threshold": 0.0,  # so short a run finds nothing that it is sure of
}
CATEGORY_IDS = (3, 7, 20)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; no test writes into it."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    experiment = apply_overrides(recipe("demo"), SETTINGS)
    claim_run_directory(directory, experiment)
    run_process(experiment, run_dir=directory, world=World())
    return directory


def output_of(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--cpu"])
    output = capsys.readouterr()
    assert (caught.value.code or 0) == code, output.err
    return output.out if code == 0 else output.err


def results_of(run_dir: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run_dir / "final_results.json").read_text())
    return results


def files_of(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def write_coco(
    source: Source, indices: list[int], root: Path, *, names: tuple[str, ...], **keys: str
) -> Path:
    """Some images of a source with numbers for ids; `keys` names the modalities to write, by their key."""
    root.mkdir()
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for position, index in enumerate(indices):
        sample = source.read(index)
        image_id = 100 + position
        files = {}
        for key, modality in keys.items():
            pixels = sample.modalities[modality].permute(1, 2, 0).numpy()
            files[key] = f"{image_id}_{modality}.png"
            Image.fromarray(pixels if modality == "rgb" else pixels[..., 0]).save(root / files[key])
        images.append({"id": image_id, **files})
        for label, (x1, y1, x2, y2) in zip(sample.labels.tolist(), sample.boxes_xyxy.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, names, strict=True)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations.json"
    path.write_text(json.dumps(tree))
    return path


@pytest.fixture(scope="module")
def same_images(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's validation images as a COCO json."""
    run = open_trained(run_dir)
    return write_coco(
        run.source,
        run.indices,
        tmp_path_factory.mktemp("coco") / "set",
        names=run.source.classes,
        visible="rgb",
        thermal="thermal",
        event="event",
    )


# --- evaluate


def test_evaluate_finds_what_the_run_found_and_leaves_its_files(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(run_dir)
    target = tmp_path / "new" / "metrics.json"
    found = json.loads(output_of(capsys, "evaluate", run_dir, "--json", "--output", target))
    final = results_of(run_dir)["final"]
    assert found["metrics"] == {name: final[name] for name in METRIC_NAMES}
    assert found["per_class"] == {name: final[name] for name in ("AP/circle", "AP/square", "AP/triangle")}
    assert found["metrics"]["mAP"] > 0, "else the test says nothing"
    assert json.loads(target.read_text()) == found
    assert files_of(run_dir) == before


def test_evaluate_on_a_part_of_the_split(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(output_of(capsys, "evaluate", run_dir, "--split", "train", "--json"))["images"] == 8
    error = output_of(capsys, "evaluate", run_dir, "--split", "test", code=2)
    assert "has no test images: its data.split has no test_fraction" in error
    error = output_of(capsys, "evaluate", run_dir, "--split", "test", "--data", "synthetic", code=2)
    assert "leave it or --data out" in error


def test_evaluate_on_other_images_prints_a_table(
    run_dir: Path, same_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = output_of(capsys, "evaluate", run_dir, "--data", same_images)
    final = results_of(run_dir)["final"]
    rows = dict(line.rsplit(maxsplit=1) for line in text.splitlines()[1:] if "no objects" not in line)
    assert rows["mAP"] == f"{final['mAP']:.4f}"
    assert rows["AP square"] == f"{final['AP/square']:.4f}"
    assert "mAP_large            undefined: nothing of it in these images" in text


def test_a_modality_that_other_images_lack_is_missing(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_trained(run_dir)
    data = write_coco(
        run.source, run.indices, tmp_path / "set", names=run.source.classes, rgb="rgb", event="event"
    )
    found = json.loads(output_of(capsys, "evaluate", run_dir, "--data", data, "--json"))
    assert found["modalities"] == ["rgb", "event"]
    with run.model.without("thermal"):
        assert found["metrics"] == evaluated(run).metrics


@pytest.mark.parametrize("command", ["evaluate", "robustness"])
def test_objects_of_other_classes_are_refused_in_one_line(
    command: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_trained(run_dir)
    data = write_coco(
        run.source, run.indices, tmp_path / "set", names=("circle", "square", "star"), rgb="rgb"
    )
    error = output_of(capsys, command, run_dir, "--data", data, code=3)
    assert "expected a category of data.classes (circle, square, triangle), got 'star'" in error
    assert error.count("\n") == 1


def test_predictions_need_no_classes_of_the_set(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a class that is no category of the set has an id that no category has."""
    run = open_trained(run_dir)
    data = write_coco(
        run.source, run.indices, tmp_path / "set", names=("circle", "square", "star"), rgb="rgb"
    )
    output_of(capsys, "predict", run_dir, "--data", data, "--output", tmp_path / "boxes")
    assert (tmp_path / "boxes" / "detections.json").is_file()


def test_images_of_which_nothing_is_read_are_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = {"kind": "identity"}
    experiment = apply_overrides(recipe("demo"), {"model.fusion": alone, "model.elsewhere": alone})
    claim_run_directory(tmp_path / "rgb_only", experiment)
    source = open_trained(run_dir).source
    data = write_coco(source, [0], tmp_path / "set", names=source.classes, thermal="thermal")
    (tmp_path / "rgb_only" / "checkpoints").symlink_to(run_dir / "checkpoints")
    error = output_of(capsys, "evaluate", tmp_path / "rgb_only", "--data", data, code=2)
    assert "reads nothing of what --data has" in error


@pytest.mark.parametrize("command", ["evaluate", "predict", "robustness"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    command: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    error = output_of(capsys, command, run_dir, "--output", tmp_path / "file" / "x" / "y", code=2)
    assert error.startswith("error: cannot write ")
    assert error.count("\n") == 1


# --- predict


def test_predictions_score_as_the_run_did(
    run_dir: Path, same_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found"
    output_of(capsys, "predict", run_dir, "--data", same_images, "--output", output, "--draw", 2)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(same_images)
        evaluation = COCOeval(truth, truth.loadRes(str(output / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    final = results_of(run_dir)["final"]
    expected = [-1 if final[name] is None else final[name] for name in METRIC_NAMES]
    np.testing.assert_allclose(evaluation.stats, expected, atol=1e-9)
    drawn = sorted(path.name for path in (output / "pictures").iterdir())
    assert drawn == ["00000_100.png", "00001_101.png"]
    height, width = open_trained(run_dir).source.read(0).source_hw
    with Image.open(output / "pictures" / drawn[0]) as opened:
        assert opened.size == (3 * width, height)


# --- robustness


@pytest.mark.slow
def test_robustness_has_a_row_for_everything_that_can_befall_the_model(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--severities", 2, "--kinds", "noise,shift,absent", "--output", tmp_path, "--json"]
    printed = json.loads(output_of(capsys, "robustness", run_dir, *arguments))
    content = json.loads((tmp_path / "robustness.json").read_text())
    assert printed == content
    clean = results_of(run_dir)["final"]["mAP"]
    with (tmp_path / "robustness.csv").open(newline="") as file:
        rows = {(row["modality"], row["kind"]): row for row in csv.DictReader(file)}
    assert list(rows) == [
        ("rgb", "noise"),
        ("rgb", "absent"),
        ("thermal", "noise"),
        ("thermal", "shift"),
        ("thermal", "absent"),
        ("event", "shift"),
        ("event", "absent"),
    ]
    for curve in content["curves"]:
        row, scores = rows[curve["modality"], curve["kind"]], curve["scores"]
        assert scores[0] == clean
        assert float(row["mAP_1"]) == scores[1]
        if curve["kind"] == "absent":
            assert (row["mAP_2"], row["area"], len(scores)) == ("", "", 2)
            assert curve["relative"] == pytest.approx(scores[1] / clean)
        else:
            area = np.trapezoid(scores) / 2
            assert curve["area"] == pytest.approx(area)
            assert float(row["relative"]) == pytest.approx(area / clean)
    spoiled = [tuple(curve["scores"]) for curve in content["curves"] if curve["kind"] != "absent"]
    assert len(set(spoiled)) == len(spoiled), (
        "nothing was spoiled twice"
    )  # without a sensor, several may find nothing
    assert content["strengths"] == {"noise": [0.08, 0.12], "shift": [1.0, 2.0]}
    again = tmp_path / "again"
    output_of(capsys, "robustness", run_dir, "--severities", 1, "--kinds", "noise", "--output", again)
    curves = {(c["modality"], c["kind"]): c["scores"] for c in content["curves"]}
    for curve in json.loads((again / "robustness.json").read_text())["curves"]:
        assert curve["scores"] == curves[curve["modality"], curve["kind"]][:2]


def test_an_absent_modality_is_a_missing_one(run_dir: Path) -> None:
    run = open_trained(run_dir)
    data = run.experiment.data.model_copy(update={"missing": ("thermal",)})
    detector = build_model(run.experiment.model_copy(update={"data": data})).eval()
    detector.load_state_dict(run.model.state_dict())
    lacking = evaluated(replace(run, model=detector)).metrics["mAP"]
    (curve,) = (c for c in measure_robustness(run, kinds=["absent"]).curves if c.modality == "thermal")
    assert curve.scores[1] == lacking


def test_a_model_of_one_modality_is_neither_shifted_nor_emptied(run_dir: Path) -> None:
    run = open_trained(run_dir)
    alone = {"kind": "identity"}
    experiment = apply_overrides(run.experiment, {"model.fusion": alone, "model.elsewhere": alone})
    single = replace(run, experiment=experiment, model=build_model(experiment).eval())
    found = measure_robustness(single, severities=1, kinds=["dark", "dead_rows", "shift", "absent"])
    assert [(curve.modality, curve.kind) for curve in found.curves] == [("rgb", "dark")]
    with pytest.raises(ConfigError, match="does not apply to the modalities that the model uses"):
        measure_robustness(single, kinds=["event_loss"])


# --- cost


def test_a_run_tells_what_it_has_cost(run_dir: Path) -> None:
    results, info = results_of(run_dir), json.loads((run_dir / "model_info.json").read_text())
    flops = forward_flops(Experiment.from_json((run_dir / "config.json").read_text(), where="config"))
    assert results["gflops"] == info["gflops"]["total"] == flops["total"] / 1e9
    # Weights, gradients and two moments of fp32 at least, and a process that trains demos at most.
    assert results["parameters"] * 16 < results["peak_memory_bytes"] < 4e9


def test_bench_inference_lets_runs_take_turns(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "inference", run_dir, run_dir]
    report = json.loads(output_of(capsys, *command, "--batch", 4, "--images", 6, "--rounds", 2, "--json"))
    assert (report["device"].split(",")[0], report["batch"], report["rounds"]) == ("CPU", 4, 2)
    first, second = report["speeds"]
    assert first["images"] == 8, "whole batches"
    assert first["of_first"] == 1.0
    assert 0 < first["slowest"] <= first["images_per_s"] <= first["fastest"]
    assert 0.2 < second["of_first"] < 5.0, "the same run"
    assert first["gflops"] == results_of(run_dir)["gflops"]
    assert len(output_of(capsys, *command, "--images", 1, "--rounds", 1).splitlines()) == 4
