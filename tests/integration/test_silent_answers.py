"""What is planted in the embedded set `silent` is what a trained model with memory finds: objects that stand still in
windows without a single event."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from raydet.config import Frames, SilentSource
from raydet.data.silent import SIZE_HW, SilentSet
from raydet.engine.open_run import TrainedRun, open_trained, predicted
from raydet.engine.process import run_process
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.run_dir import claim_run_directory
from raydet.structures import boxes_of


def agnostic_ap50(
    rows: NDArray[np.float64], run: TrainedRun, images: SilentSet, frames: Sequence[int]
) -> float:
    """Pycocotools' AP50 on some of the evaluation frames, whatever the classes."""
    chosen, truths = set(frames), []
    for frame in frames:
        target, _ = images.targets(run.indices[frame])
        for left, top, right, bottom in boxes_of(target, "").boxes_xyxy.tolist():
            width, height = right - left, bottom - top
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": frame,
                    "category_id": 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    found = [
        {"image_id": int(row[0]), "category_id": 1, "bbox": row[1:5].tolist(), "score": row[5]}
        for row in rows
        if int(row[0]) in chosen
    ]
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": frame, "height": SIZE_HW[0], "width": SIZE_HW[1]} for frame in frames],
            "annotations": truths,
            "categories": [{"id": 1, "name": "square"}],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def answers(run_dir: Path) -> dict[str, float]:
    """AP50 on windows without events and on the others, with the memory of the sequence and with an empty one."""
    run = open_trained(run_dir)
    source = run.experiment.data.source
    assert isinstance(source, SilentSource)
    images = SilentSet(num_sequences=source.num_sequences, seed=source.seed)
    data = run.experiment.data.model_copy(update={"sampling": Frames()})
    single = replace(run, experiment=run.experiment.model_copy(update={"data": data}))
    found = {}
    for name, own in (("memory", run), ("none", single)):
        rows = predicted(own)
        rows = rows[rows[:, 6] >= 0]
        for kind, is_empty in (("empty", True), ("others", False)):
            frames = [frame for frame, index in enumerate(run.indices) if images.is_empty(index) == is_empty]
            found[f"{name}, {kind}"] = agnostic_ap50(rows, run, images, frames)
    return found


@pytest.mark.slow
def test_memory_finds_what_stands_still(tmp_path: Path) -> None:
    claim_run_directory(tmp_path / "run", experiment := recipe("event_demo"))
    run_process(experiment, run_dir=tmp_path / "run", world=World())
    found = answers(tmp_path / "run")
    assert found["memory, empty"] > 0.5
    assert found["memory, others"] > 0.5
    assert found["none, empty"] < 0.05
