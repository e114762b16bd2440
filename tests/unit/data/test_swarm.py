"""The embedded set of small objects close together holds what it says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from raydet.data.build import adopt_source, detect_source, open_source
from raydet.data.swarm import SwarmSet
from raydet.recipes.demo import demo


@pytest.fixture(scope="module")
def swarm() -> SwarmSet:
    return SwarmSet(num_sequences=20, seed=0)


def test_the_bytes_are_the_same_everywhere(swarm: SwarmSet) -> None:
    found = hashlib.sha256()
    for index in (0, 1, 50, len(swarm) - 1):
        sample = swarm.read(index)
        found.update(sample.modalities["event"].numpy().tobytes())
        found.update(sample.boxes_xyxy.numpy().tobytes() + sample.labels.numpy().tobytes())
    assert found.hexdigest()[:16] == "f7fcf7427ca972c7"


def test_swarms_are_grids_beside_large_squares(swarm: SwarmSet) -> None:
    numbers = set()
    for index in range(0, len(swarm), 3):
        sample = swarm.read(index)
        boxes, labels = sample.boxes_xyxy, sample.labels
        sides = boxes[:, 2:] - boxes[:, :2]
        assert set(sides[labels == 0].flatten().tolist()) <= {4, 5, 6}
        assert set(sides[labels == 1].flatten().tolist()) == {24}
        numbers.add((int((labels == 0).sum()), int((labels == 1).sum())))
        for grid in boxes[labels == 0].reshape(-1, 16, 4):
            steps = grid.reshape(4, 4, 4).diff(dim=1)[..., 0]
            assert steps.unique().numel() == 1
            assert steps[0, 0] in (6, 7)
        assert (boxes >= 0).all()
        assert (boxes <= 128).all()
    assert numbers == {(16, 1), (16, 2), (32, 1), (32, 2)}


def test_boxes_of_an_image_do_not_touch(swarm: SwarmSet) -> None:
    for index in range(0, len(swarm), 5):
        covered = np.zeros((128, 128), int)
        for x1, y1, x2, y2 in swarm.targets(index)[0].boxes_xyxy.int().tolist():  # type: ignore[union-attr]
            covered[y1:y2, x1:x2] += 1
        assert covered.max() == 1


def test_coarse_cells_have_several_objects_and_fine_ones_do_not(swarm: SwarmSet) -> None:
    """Centres per cell that has any."""
    shares = {}
    for stride in (8, 2):
        crowds = []
        for index in range(0, len(swarm), 8):
            sample = swarm.read(index)
            centres = sample.boxes_xyxy[sample.labels == 0].reshape(-1, 2, 2).mean(dim=1)
            _, counts = (centres / stride).floor().unique(dim=0, return_counts=True)
            crowds += counts.tolist()
        shares[stride] = float(np.mean(np.array(crowds) > 1))
    assert shares[8] > 0.2
    assert shares[2] == 0


def test_every_object_fires_in_every_window(swarm: SwarmSet) -> None:
    for index in range(0, len(swarm), 9):
        sample = swarm.read(index)
        fired = sample.modalities["event"].numpy().any(axis=0)
        for x1, y1, x2, y2 in sample.boxes_xyxy.int().tolist():
            assert fired[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1].any()
        assert set(swarm.silent_ages(index)) == {0}
        assert len(swarm.silent_ages(index)) == len(sample.labels)


def test_the_way_from_the_command_line() -> None:
    experiment = adopt_source(demo(), detect_source("swarm?num_sequences=2"))
    assert experiment.data.classes == ("small", "large")
    source = open_source(experiment.data)
    assert len(source) == 32
    assert len(set(source.group_ids)) == 2
    assert torch.equal(
        source.read(9).modalities["event"], SwarmSet(num_sequences=2, seed=0).read(9).modalities["event"]
    )
