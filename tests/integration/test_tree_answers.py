"""What is known of every pixel of the embedded set `tree` is what a trained model finds, over three seeds.

A far object shows its bucket and hides its leaf: models are sure of the one and can only guess the other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydet.config import TreeSource, apply_overrides
from raydet.config.tree import TREE_LEVELS
from raydet.data.tree import GROUND, TreeSet
from raydet.engine.open_run import open_trained, segmented
from raydet.engine.process import run_process
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.run_dir import claim_run_directory
from raydet.structures import IGNORE, mask_of

SETTINGS = {
    "data.source.thermal": False,
    "data.missing": ["thermal", "event"],
    "model.aux_modalities": [],
    "model.fusion.kind": "identity",
    "model.elsewhere.kind": "identity",
    "model.fusion_stages": [],
    "model.head.loss": {"kind": "hierarchical"},
}
PARENTS = np.array([*TREE_LEVELS[0].parents, *[255] * 247])
UNSEEN = TreeSource(num_images=400, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_buckets_of_far_objects_are_known_and_leaves_are_guessed(seed: int, tmp_path: Path) -> None:
    experiment = apply_overrides(recipe("seg_demo"), {**SETTINGS, "seed": seed})
    claim_run_directory(tmp_path / "run", experiment)
    run_process(experiment, run_dir=tmp_path / "run", world=World())
    run = open_trained(tmp_path / "run", data=UNSEEN)
    images = TreeSet(num_images=UNSEEN.num_images, has_thermal=False, seed=UNSEEN.seed)
    truth, found, contradictions = [], [], 0
    for index, ids_LHW in segmented(run):
        target, _ = images.targets(index)
        truth_HW = mask_of(target, "").ids_HW.numpy()
        is_far_HW = images.is_far(index) & (truth_HW != IGNORE)
        leaves_HW, buckets_HW = ids_LHW[0].numpy(), ids_LHW[1].numpy()
        contradictions += int((PARENTS[leaves_HW] != buckets_HW).sum())
        truth.append(truth_HW[is_far_HW].astype(int))
        found.append(leaves_HW[is_far_HW])
    leaves, guesses = np.concatenate(truth), np.concatenate(found)
    assert GROUND not in leaves
    assert contradictions == 0
    buckets, guessed_buckets = PARENTS[leaves], PARENTS[guesses]
    for bucket, size in enumerate(np.bincount(TREE_LEVELS[0].parents)[:-1]):
        is_true, is_guessed = buckets == bucket, guessed_buckets == bucket
        iou = (is_true & is_guessed).sum() / (is_true | is_guessed).sum()
        # The mean over the leaves, so that it does not matter how many of each were drawn.
        own = np.unique(leaves[is_true])
        accuracy = np.mean([(guesses[leaves == leaf] == leaf).mean() for leaf in own])
        assert len(own) == size
        assert iou > 0.9
        assert accuracy == pytest.approx(1 / size, abs=0.1)
