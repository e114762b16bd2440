"""A run on masks that has trained for a moment: its drawn images, `raydet predict`, `evaluate` and `robustness`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydet.cli import main
from raydet.config import apply_overrides
from raydet.engine.open_run import evaluated, open_trained, segmented
from raydet.engine.process import run_process
from raydet.metrics.records import read_records, score
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.report.drawings.run import drawings_of_run
from raydet.runs.run_dir import claim_run_directory
from raydet.structures import IGNORE, mask_of

SETTINGS = {
    "data.source.num_images": 16,
    "data.canvas_hw": [64, 96],  # not the images' shape: predictions have to come back to it
    "train.epochs": 1,
    "train.eval_batch": 2,
    "model.head.loss": {"kind": "hierarchical", "depth": 1},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; no test writes into it."""
    directory = tmp_path_factory.mktemp("runs") / "masks"
    experiment = apply_overrides(recipe("seg_demo"), SETTINGS)
    claim_run_directory(directory, experiment)
    run_process(experiment, run_dir=directory, world=World())
    return directory


def succeeds(*arguments: object) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--cpu"])
    assert not caught.value.code


def test_predicted_masks_have_the_evaluations_accuracy(run_dir: Path) -> None:
    run = open_trained(run_dir)
    right = total = 0
    for index, ids_LHW in segmented(run):
        target, size_hw = run.source.targets(index)
        truth_HW = mask_of(target, "").ids_HW
        assert tuple(ids_LHW.shape[1:]) == size_hw
        is_labelled_HW = truth_HW != IGNORE
        right += int((ids_LHW[0] == truth_HW)[is_labelled_HW].sum())
        total += int(is_labelled_HW.sum())
    accuracy = evaluated(run).metrics["pixel_accuracy"]
    assert accuracy == pytest.approx(right / total)
    assert accuracy == pytest.approx(score(read_records(run_dir), "pixel_accuracy"))


def test_drawn_images(run_dir: Path) -> None:
    drawings = drawings_of_run(run_dir, count=1)
    assert [drawing.name for drawing in drawings] == ["best-1", "worst-1", "confusion"]
    assert "of all 4 images together" in drawings[0].caption
    for drawing in drawings:
        assert Image.open(io.BytesIO(drawing.png)).size > (100, 100)
    assert drawings_of_run(run_dir, count=1) == drawings


def test_masks_as_files(run_dir: Path, tmp_path: Path) -> None:
    succeeds("predict", run_dir, "--output", tmp_path, "--draw", 1)
    run = open_trained(run_dir)
    for index, ids_LHW in segmented(run):
        name = f"{run.source.image_ids[index]}.png"
        for directory, ids_HW in zip(("masks", "masks_bucket", "masks_root"), ids_LHW, strict=True):
            image = Image.open(tmp_path / directory / name)
            assert image.mode == "P"
            assert torch.equal(torch.from_numpy(np.array(image)).short(), ids_HW)
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_images_without_masks(run_dir: Path, tmp_path: Path) -> None:
    """In another size, with sequences in directories of their own, below which names are unique."""
    for modality, mode in (("rgb", "RGB"), ("thermal", "L")):
        for name in ("a/1", "b/2"):
            path = tmp_path / "set" / modality / f"{name}.png"
            path.parent.mkdir(parents=True)
            Image.new(mode, (50, 40)).save(path)
    succeeds("predict", run_dir, "--data", f"masks:{tmp_path / 'set'}", "--output", tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out" / "masks").rglob("*.png"))
    assert [str(path) for path in found] == ["masks/1.png", "masks/2.png"]
    with Image.open(tmp_path / "out" / found[0]) as image:
        assert image.size == (50, 40)


def test_robustness(run_dir: Path, tmp_path: Path) -> None:
    succeeds("robustness", run_dir, "--kinds", "absent", "--output", tmp_path)
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert found["metric"] == "mIoU"
    assert {curve["modality"] for curve in found["curves"]} == {"rgb", "thermal"}
