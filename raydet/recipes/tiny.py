"""The smallest run whose detectors find something: for `make demo`, ten seconds on one CPU core."""

from __future__ import annotations

from raydet.config import DetectionTask, Experiment, GroupSplit, SyntheticSource
from raydet.recipes.demo import demo


def tiny() -> Experiment:
    """The demo's detector on smaller images with one class, which it learns in a few dozen steps.

    No sensor shows all objects, so that fusion has something to gain; half a minute of training does not localise well
    enough for stricter metrics than mAP_50.
    """
    base = demo()
    return base.model_copy(
        update={
            "name": "tiny",
            "task": DetectionTask(metric="mAP_50"),
            "data": base.data.model_copy(
                update={
                    "source": SyntheticSource(num_sequences=60, frames_per_sequence=2, size_hw=(64, 96)),
                    "classes": ("object",),
                    "canvas_hw": (64, 96),
                    "split": GroupSplit(val_fraction=0.3),
                }
            ),
            "train": base.train.model_copy(update={"epochs": 5, "eval_every": 3}),
        }
    )
