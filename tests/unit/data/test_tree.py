"""The embedded set with a class tree holds what it says: in its pixels, and in its best accuracies."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from raydet.config import TreeSource
from raydet.config.tree import TREE_CLASSES, TREE_LEVELS
from raydet.data.build import adopt_source, colours_of, detect_source, levels_of, open_source
from raydet.data.tree import (
    BUCKET_OF,
    GROUND,
    HEAT,
    HUES,
    IS_WARM,
    STRIPES,
    TEXTURES,
    THERMAL_TEXTURES,
    TreeSet,
    best_accuracy,
)
from raydet.recipes.demo import demo
from raydet.structures import IGNORE, mask_of

NUM_IMAGES = 60


def tree(*, has_thermal: bool = False, seed: int = 0, num_images: int = NUM_IMAGES) -> TreeSet:
    return TreeSet(num_images=num_images, has_thermal=has_thermal, seed=seed)


def ids_of(source: TreeSet, index: int) -> np.ndarray:
    return mask_of(source.targets(index)[0], "").ids_HW.numpy()


@pytest.mark.parametrize(("has_thermal", "digest"), [(False, "6e87d85810f505ec"), (True, "1b6882ca27c26d46")])
def test_the_bytes_are_the_same_everywhere(has_thermal: bool, digest: str) -> None:
    source = tree(has_thermal=has_thermal)
    found = hashlib.sha256()
    for index in (0, 1, 17):
        sample = source.read(index)
        for pixels in sample.modalities.values():
            found.update(pixels.numpy().tobytes())
        found.update(mask_of(sample.target, "").ids_HW.numpy().tobytes())
        found.update(source.is_far(index).tobytes())
    assert found.hexdigest()[:16] == digest


def test_seeds_differ_and_images_do_not_depend_on_their_number() -> None:
    a, b, c = tree().read(3), tree(num_images=5).read(3), tree(seed=1).read(3)
    assert torch.equal(a.modalities["rgb"], b.modalities["rgb"])
    assert not torch.equal(a.modalities["rgb"], c.modalities["rgb"])
    assert pickle.loads(pickle.dumps(tree())).image_ids == tree().image_ids


def test_the_tree() -> None:
    """Two roots, four buckets of contiguous leaves, one of them single, nine leaves."""
    bucket, root = TREE_LEVELS
    assert len(TREE_CLASSES) == len(bucket.parents) == 9
    assert list(bucket.parents) == sorted(bucket.parents)
    assert sorted(Counter(bucket.parents).values()) == [1, 2, 2, 4]
    assert (len(root.groups), len(root.parents)) == (2, 4)


def test_leaves_are_unequal_and_far_ones_even() -> None:
    source = tree(num_images=1500)
    near, far = Counter[int](), Counter[int]()
    for index in range(len(source)):
        for each in source._objects(index):
            (far if each.is_far else near)[each.leaf] += 1
    both = near + far
    assert set(both) == set(range(GROUND))
    assert 12 < max(both.values()) / min(both.values()) < 30  # 20 as drawn
    assert 0.30 < far.total() / both.total() < 0.36
    for bucket in range(3):
        counts = np.array([far[leaf] for leaf in range(GROUND) if BUCKET_OF[leaf] == bucket])
        expected = counts.sum() / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 16  # chi squared with up to 3 degrees: p < .002


def test_seams_have_no_label_and_objects_do_not_touch() -> None:
    source = tree()
    for index in range(20):
        ids = ids_of(source, index)
        for axis in (0, 1):
            first, second = (np.take(ids, range(part, 95 + part), axis) for part in (0, 1))
            differ = (first != second) & (first != IGNORE) & (second != IGNORE)
            assert not differ.any()
        assert 0.4 < (ids == GROUND).mean() < 0.95


@pytest.mark.parametrize("has_thermal", [False, True])
def test_the_claims_hold_in_the_pixels(has_thermal: bool) -> None:
    """A reader that knows the textures finds every near leaf, and nothing but the bucket of the far ones."""
    source = tree(has_thermal=has_thermal)
    textures = THERMAL_TEXTURES if has_thermal else TEXTURES
    seen = Counter[str]()
    for index in range(NUM_IMAGES):
        sample, ids = source.read(index), ids_of(source, index)
        rgb = sample.modalities["rgb"].numpy().astype(float)
        if source.is_night(index):
            assert rgb.max() < 25
            continue
        for each in source._objects(index):
            inside = ids[each.place] == each.leaf
            patch = rgb[:, each.place[0], each.place[1]]
            mean = patch[:, inside].mean(axis=1)
            nearest = int(((np.array(HUES) - mean) ** 2).sum(axis=1).argmin())
            assert nearest == BUCKET_OF[each.leaf]
            grey = patch.mean(axis=0) - mean.mean()
            scores = {texture: strength(grey, inside, *texture) for texture in set(textures)}
            best = max(scores, key=lambda texture: scores[texture])
            seen["far" if each.is_far else "near"] += 1
            if each.is_far:
                assert scores[best] < 0.2 * STRIPES
                assert source.is_far(index)[each.place][inside].all()
            else:
                assert best == textures[each.leaf]
                assert scores[best] > 0.8 * STRIPES
                assert not source.is_far(index)[each.place][inside].any()
            if has_thermal:
                heat = sample.modalities["thermal"][0].numpy().astype(float)
                contrast = heat[each.place][inside].mean() - np.median(heat[ids == GROUND])
                assert (contrast > 0) == IS_WARM[each.leaf]
                assert abs(contrast) > HEAT / 2
    assert seen["far"] > 50


def strength(grey: np.ndarray, inside: np.ndarray, period: int, direction: str) -> float:
    """Amplitude of square waves of a period, at the best phase."""
    length = grey.shape[0 if direction == "rows" else 1]
    found = []
    for phase in range(period):
        wave = np.where((np.arange(length) + phase) % period < period // 2, 1.0, -1.0)
        pattern = np.broadcast_to(wave[:, None] if direction == "rows" else wave, grey.shape)
        found.append(abs((grey * pattern)[inside].mean()))
    return max(found)


def test_the_best_accuracies() -> None:
    """The table of the module, and sums over the drawn objects instead of over the weights."""
    assert best_accuracy(["rgb"], has_thermal=False, is_far=False) == pytest.approx(1)
    assert best_accuracy(["rgb"], has_thermal=False, is_far=True, level=1) == pytest.approx(1)
    expected = {
        ("rgb",): (0.432, 0.812, 0, 0.312, 0),
        ("thermal",): (0.617, 0.661, 0.661, 0.527, 0.527),
        ("rgb", "thermal"): (0.768, 1, 0.661, 0.527, 0.527),
    }
    cases = ((None, None), (False, False), (False, True), (True, False), (True, True))
    for modalities, row in expected.items():
        for (is_far, is_night), value in zip(cases, row, strict=True):
            found = best_accuracy(modalities, has_thermal=True, is_far=is_far, is_night=is_night)
            assert found == pytest.approx(value, abs=6e-4)
    assert best_accuracy(["rgb"], has_thermal=True, level=1) == pytest.approx(2 / 3)
    assert best_accuracy(["thermal"], has_thermal=True, level=1) == pytest.approx(1)


def test_a_table_of_what_is_seen_reaches_the_best_accuracy_and_no_more() -> None:
    """Learned from drawn objects: what a perfect classifier of objects would know."""
    source = tree(has_thermal=True, num_images=1200)
    rows = [(source.is_night(index), each) for index in range(len(source)) for each in source._objects(index)]
    table: dict[object, Counter[int]] = {}
    for is_night, each in rows:
        stripes = None if is_night else "far" if each.is_far else THERMAL_TEXTURES[each.leaf]
        table.setdefault((stripes, BUCKET_OF[each.leaf], IS_WARM[each.leaf]), Counter())[each.leaf] += 1
    right = sum(max(counts.values()) for counts in table.values()) / len(rows)
    assert right == pytest.approx(best_accuracy(["rgb", "thermal"], has_thermal=True), abs=0.02)


def test_it_is_adopted_with_its_tree() -> None:
    config = detect_source("tree?thermal=true&num_images=7")
    assert config == TreeSource(num_images=7, thermal=True)
    data = adopt_source(demo(), config, any_task=True).data
    assert (data.classes, data.missing) == (TREE_CLASSES, ("event",))
    source = open_source(data)
    assert (len(source), source.modalities) == (7, ("rgb", "thermal"))
    assert levels_of(source) == TREE_LEVELS
    assert len(colours_of(source)) == len(TREE_CLASSES)
    only = open_source(data.model_copy(update={"missing": ("rgb", "event")}))
    assert only.read(0).modalities.keys() == {"thermal"}
    assert adopt_source(demo(), detect_source("tree"), any_task=True).data.missing == ("thermal", "event")
