"""The loss on images that were not trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydet.config import apply_overrides
from raydet.data.build import open_source
from raydet.data.loader import EvalLoader
from raydet.engine.evaluator import Predictions, mean_loss, predict
from raydet.models.build import build_model
from raydet.models.model import Model
from raydet.recipes import recipe
from raydet.tasks.build import build_task

EXPERIMENT = apply_overrides(
    recipe("demo"),
    {
        "data.source": {"kind": "synthetic", "num_sequences": 3, "frames_per_sequence": 2},
        # As many proposals as in training, and so many samples that none is left out.
        "model.head.rpn_pre_nms_top_n": [200, 200],
        "model.head.rpn_post_nms_top_n": [32, 32],
        "model.head.rpn_batch_size_per_image": 4096,
        "model.head.box_batch_size_per_image": 512,
    },
)


def loader(batch_size: int, *, rank: int = 0, world_size: int = 1, in_step: bool = False) -> EvalLoader:
    source = open_source(EXPERIMENT.data)
    return EvalLoader(
        source,
        list(range(len(source))),
        data=EXPERIMENT.data,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        in_step=in_step,
    )


def predictions(detector: Model, batches: EvalLoader) -> Predictions:
    source = open_source(EXPERIMENT.data)
    scorer = build_task(EXPERIMENT).scorer(EXPERIMENT, source, list(range(len(source))))
    return predict(detector, batches, scorer, device=torch.device("cpu"))


def test_it_is_the_training_loss_where_nothing_is_sampled() -> None:
    detector = build_model(EXPERIMENT)
    _, losses = predictions(detector, loader(3))
    detector.eval()  # batch norms as in evaluation
    detector.head.train()
    detector.training = True
    with torch.no_grad():
        expected = [float(sum(detector(batch).losses.values())) for batch, _ in loader(3)]
    assert losses[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert losses[:, 1].tolist() == [3, 3]


def test_two_workers_find_the_same_bits_as_one() -> None:
    detector = build_model(EXPERIMENT)
    one = predictions(detector, loader(4)).losses_L2
    parts = [
        predictions(detector, loader(4, rank=rank, world_size=3, in_step=True)).losses_L2
        for rank in (2, 0, 1)
    ]
    assert mean_loss(np.concatenate(parts)) == mean_loss(one)


def test_without_images_there_is_no_loss() -> None:
    assert mean_loss(np.zeros((0, 2))) is None
    assert mean_loss(np.array([[3.0, 0.0]])) is None
