"""Real RGB + thermal pairs, through both formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raydet.cli import main
from raydet.config import Experiment, FirstSplit, NpyYoloSource, apply_overrides
from raydet.data.build import adopt_source, detect_source, open_source
from raydet.data.loader import TrainLoader
from raydet.engine.step import seed_slot
from raydet.models.build import build_model
from raydet.recipes import recipe

NUM_PAIRS = 8


def base(shared_data: Path) -> Experiment:
    coco = detect_source(str(shared_data / "roadscene_flir"))
    experiment = adopt_source(recipe("demo"), coco)
    split = FirstSplit(num_train=NUM_PAIRS, overfit=True)
    return apply_overrides(
        experiment,
        {
            "data.split": split.model_dump(mode="json"),
            "data.canvas_hw": [256, 320],
            # augmentation is seeded by the images' names, which differ between the two sets
            "data.augmentation.flip_probability": 0.0,
        },
    )


def as_npy_yolo(experiment: Experiment, root: Path) -> Experiment:
    """The first pairs written anew: five channels, the event one zero and declared missing."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("\n".join(experiment.data.classes) + "\n")
    source = open_source(experiment.data)
    for index in range(NUM_PAIRS + 1):  # one more: a split needs two sides
        sample = source.read(index)
        rgb, thermal = sample.modalities["rgb"], sample.modalities["thermal"]
        image = torch.cat([rgb, thermal, torch.zeros_like(thermal)]).permute(1, 2, 0)
        np.save(root / "images" / f"{index:04d}.npy", image.numpy())
        height, width = sample.source_hw
        rows = [
            f"{int(label)} {(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f} "
            f"{(x2 - x1) / width:.9f} {(y2 - y1) / height:.9f}"
            for (x1, y1, x2, y2), label in zip(
                sample.boxes_xyxy.double().tolist(), sample.labels, strict=True
            )
        ]
        (root / "labels" / f"{index:04d}.txt").write_text("\n".join(rows))
    assert experiment.data.missing == ("event",)
    return adopt_source(experiment, NpyYoloSource(root=str(root)))


def first_step_losses(experiment: Experiment) -> dict[str, float]:
    source = open_source(experiment.data)
    loader = TrainLoader(
        source,
        range(NUM_PAIRS),
        data=experiment.data,
        seed=experiment.seed,
        global_batch=NUM_PAIRS,
        micro_batch=NUM_PAIRS,
        accumulation=1,
        rank=0,
        world_size=1,
    )
    torch.manual_seed(experiment.seed)
    detector = build_model(experiment)
    ((batch,),) = list(loader.epoch(0))
    seed_slot(experiment.seed, 0, slot=0)
    return {name: value.item() for name, value in detector(batch).losses.items()}


def test_both_formats_give_the_same_boxes_and_the_same_first_step(shared_data: Path, tmp_path: Path) -> None:
    coco = base(shared_data)
    npy = as_npy_yolo(coco, tmp_path / "npy")
    sources = open_source(coco.data), open_source(npy.data)
    for index in range(NUM_PAIRS):
        (target, size), (other, other_size) = (s.targets(index) for s in sources)
        torch.testing.assert_close(other.boxes_xyxy, target.boxes_xyxy, atol=1e-3, rtol=0)
        assert (target.labels.tolist(), size) == (other.labels.tolist(), other_size)
    assert first_step_losses(npy) == pytest.approx(first_step_losses(coco), rel=1e-6)


@pytest.mark.slow
def test_eight_pairs_are_learnt_by_heart(shared_data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(shared_data / "roadscene_flir"), "--run-dir", str(tmp_path / "run")]
    overrides = {
        "data.split": {"kind": "first", "num_train": NUM_PAIRS, "overfit": True},
        "data.canvas_hw": [256, 384],
        "data.augmentation.flip_probability": 0.0,
        "train.global_batch": 4,
        "train.eval_every": 160,
    }
    sets = [part for path, value in overrides.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    # At 100 epochs rounding alone decides between 0.6 and 0.97; at 160 every seed tried has arrived.
    command = ["train", "--recipe", "demo", "--workers", "0", "--tracking-uri", "none", "--epochs", "160"]
    with pytest.raises(SystemExit) as caught:
        main([*command, *arguments, *sets])
    assert not caught.value.code
    results = json.loads((tmp_path / "run" / "final_results.json").read_text())
    assert results["final"]["mAP_50"] >= 0.9
