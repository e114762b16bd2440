"""The embedded set with anomalies holds what it says."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch

from raydet.config import NamedSplit, StrangeSource
from raydet.data.build import adopt_source, detect_source, open_source
from raydet.data.split import split_indices
from raydet.data.strange import PARTS, StrangeSet
from raydet.data.tree import TreeSet
from raydet.metrics.anomaly import ScoreHistogram, image_metrics
from raydet.recipes.segmentation import seg_demo
from raydet.structures import ANOMALY, IGNORE, collate, mask_of

SIZES = (6, 3, 3, 60)
FIRST_TEST = sum(SIZES[:-1])


@pytest.fixture(scope="module")
def strange() -> StrangeSet:
    return StrangeSet(SIZES, seed=0)


def ids_of(source: TreeSet, index: int) -> np.ndarray:
    return mask_of(source.targets(index)[0], "").ids_HW.numpy()


def test_the_bytes_are_the_same_everywhere(strange: StrangeSet) -> None:
    found = hashlib.sha256()
    for index in (0, FIRST_TEST, FIRST_TEST + 2, FIRST_TEST + 4):
        sample = strange.read(index)
        found.update(sample.modalities["rgb"].numpy().tobytes())
        found.update(mask_of(sample.target, "").ids_HW.numpy().tobytes())
    assert found.hexdigest()[:16] == "8be55ed88768070a"


def test_only_test_images_are_strange(strange: StrangeSet) -> None:
    """The others are those of `tree`, and every second test image, too."""
    plain = TreeSet(num_images=len(strange), has_thermal=False, seed=0)
    for index in range(len(strange)):
        is_strange = index >= FIRST_TEST and (index - FIRST_TEST) % 2 == 0
        assert bool((ids_of(strange, index) == ANOMALY).any()) == is_strange
        if not is_strange:
            assert np.array_equal(ids_of(strange, index), ids_of(plain, index))
            pixels = [source.read(index).modalities["rgb"] for source in (strange, plain)]
            assert torch.equal(*pixels)


def test_near_and_far_ones(strange: StrangeSet) -> None:
    counts = {"near": 0, "far": 0}
    for index in range(FIRST_TEST, len(strange), 2):
        ids, near, far = ids_of(strange, index), strange.is_near(index), strange.is_far(index)
        assert bool(near.any()) != bool(far.any())
        assert ((ids == ANOMALY) <= (near | far)).all()
        assert np.isin(ids[near | far], (ANOMALY, IGNORE)).all()
        counts["near" if near.any() else "far"] += 1
    assert counts == {"near": 15, "far": 15}
    first = ids_of(strange, FIRST_TEST)
    assert (first == ANOMALY).mean() > 0.9
    others = np.stack([ids_of(strange, index) for index in range(FIRST_TEST + 1, len(strange))])
    assert 0.007 < (others == ANOMALY).sum() / (others != IGNORE).sum() < 0.015


def test_the_oracle_a_constant_and_brightness(strange: StrangeSet) -> None:
    oracle, constant, brightness = (ScoreHistogram.empty() for _ in range(3))
    for index in range(FIRST_TEST, len(strange)):
        ids = ids_of(strange, index)
        is_counted, is_anomalous = ids != IGNORE, (ids == ANOMALY)
        rgb = strange.read(index).modalities["rgb"].numpy().astype(np.float32).mean(axis=0)
        truth = is_anomalous[is_counted]
        oracle = oracle.merge(ScoreHistogram.of(truth.astype(np.float32), truth))
        constant = constant.merge(ScoreHistogram.of(np.zeros(truth.shape, np.float32), truth))
        brightness = brightness.merge(ScoreHistogram.of(rgb[is_counted], truth))
    assert (oracle.auroc(), oracle.average_precision(), oracle.fpr95()) == (1.0, 1.0, 0.0)
    prevalence = constant.anomalous_V.sum() / (constant.anomalous_V.sum() + constant.normal_V.sum())
    assert (constant.auroc(), constant.average_precision(), constant.fpr95()) == (0.5, prevalence, 1.0)
    assert abs(brightness.auroc() - 0.5) < 0.03


def test_both_protocols_differ(strange: StrangeSet) -> None:
    """A map that is right in small anomalies only: pooled pixels are mostly those of the one large one."""
    pooled, per_image = ScoreHistogram.empty(), []
    for index in range(FIRST_TEST, len(strange), 2):
        ids = ids_of(strange, index)
        truth = (ids == ANOMALY)[ids != IGNORE]
        scores = truth.astype(np.float32) if index > FIRST_TEST else 1 - truth.astype(np.float32)
        pooled = pooled.merge(ScoreHistogram.of(scores, truth))
        per_image.append(image_metrics(scores, truth).auroc)
    assert np.mean(per_image) == pytest.approx(29 / 30)
    assert pooled.auroc() < 0.75


def test_named_parts() -> None:
    experiment = adopt_source(seg_demo(), detect_source("strange"))
    assert isinstance(experiment.data.split, NamedSplit)
    assert experiment.data.missing == ("thermal", "event")
    source = open_source(experiment.data)
    parts = split_indices(source, experiment.data.split)
    defaults = StrangeSource()
    sizes = (defaults.num_train, defaults.num_val, defaults.num_calibration, defaults.num_test)
    assert tuple(len(parts[name]) for name in PARTS) == sizes
    assert pickle.loads(pickle.dumps(source)).image_ids == source.image_ids
    first = parts["test"][0]
    batch = collate([source.read(first)])
    assert not (batch.ids_BHW == ANOMALY).any()
    assert ((batch.ids_BHW == IGNORE).numpy()[0] == np.isin(ids_of(source, first), (ANOMALY, IGNORE))).all()
