"""Decoding on a class tree against brute force over its paths, on random trees and logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raydet.config import Level
from raydet.errors import ConfigError
from raydet.ops.class_tree import UNDECIDED, ClassTree, Decoding, contradictions, decode
from raydet.structures import IGNORE

TREES = [(seed, depth) for seed in range(3) for depth in (1, 2, 3, 4)]


def random_levels(generator: np.random.Generator, num_classes: int, depth: int) -> tuple[Level, ...]:
    """Groups of any members, neighbours or not; every group has one at least."""
    levels, below = [], num_classes
    for number in range(depth):
        size = int(generator.integers(1, below + 1))
        rest = generator.integers(size, size=below - size)
        parents = generator.permutation(np.concatenate([np.arange(size), rest])).tolist()
        levels.append(
            Level(name=f"level{number}", groups=tuple(f"g{i}" for i in range(size)), parents=tuple(parents))
        )
        below = size
    return tuple(levels)


def path_of(label: int, levels: Sequence[Level]) -> list[int]:
    """The class and its group on every level, found by climbing."""
    path = [label]
    for level in levels:
        path.append(level.parents[path[-1]])
    return path


def parts(logits_N: NDArray[np.float32], tree: ClassTree) -> list[NDArray[np.float32]]:
    return np.split(logits_N, np.cumsum(tree.sizes)[:-1])


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def random_case(seed: int, depth: int) -> tuple[tuple[Level, ...], ClassTree, torch.Tensor]:
    generator = np.random.default_rng([seed, depth])
    num_classes = int(generator.integers(2, 9))
    levels = random_levels(generator, num_classes, depth)
    tree = ClassTree(num_classes, levels)
    logits = torch.from_numpy(generator.normal(0, 2, (2, tree.num_outputs, 5, 7)).astype(np.float32))
    return levels, tree, logits


def pixels(x_BCHW: torch.Tensor) -> NDArray[np.generic]:
    """[B, C, H, W] as one row per pixel."""
    return x_BCHW.movedim(1, 3).flatten(0, 2).numpy()


def test_undecided_is_the_id_that_masks_ignore() -> None:
    assert UNDECIDED == IGNORE


def test_a_tree_knows_its_outputs_and_ancestors() -> None:
    middle = Level(
        name="kind", groups=("flower", "tree", "grass", "cat"), parents=(0, 0, 0, 0, 1, 1, 1, 2, 3)
    )
    top = Level(name="super", groups=("plant", "animal"), parents=(0, 0, 0, 1))
    tree = ClassTree(9, (middle, top))
    assert tree.num_outputs == 15
    assert tree.slices == (slice(0, 9), slice(9, 13), slice(13, 15))
    assert tree.ancestors.tolist() == [list(range(9)), [0, 0, 0, 0, 1, 1, 1, 2, 3], [0] * 8 + [1]]


def test_too_many_classes_for_a_mask_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 255 classes for masks, got 256"):
        ClassTree(256)


@pytest.mark.parametrize(("seed", "depth"), TREES)
def test_consistent_decoding_takes_the_best_of_all_paths(seed: int, depth: int) -> None:
    levels, tree, logits = random_case(seed, depth)
    found = decode(logits, tree, decoding="consistent")
    assert found.dtype == torch.int16
    assert not contradictions(found, tree).any()
    for logits_N, ids_L in zip(pixels(logits), pixels(found), strict=True):
        scores = [sigmoid(x) for x in parts(logits_N, tree)]
        paths = [path_of(label, levels) for label in range(tree.num_classes)]
        best = max(paths, key=lambda path: sum(s[i] for s, i in zip(scores, path, strict=True)))
        assert ids_L.tolist() == best


@pytest.mark.parametrize(("seed", "depth"), TREES)
def test_independent_decoding_takes_the_best_of_every_level(seed: int, depth: int) -> None:
    levels, tree, logits = random_case(seed, depth)
    found = decode(logits, tree, decoding="independent")
    violated = contradictions(found, tree).flatten()
    for logits_N, ids_L, is_violated in zip(pixels(logits), pixels(found), violated, strict=True):
        assert ids_L.tolist() == [int(x.argmax()) for x in parts(logits_N, tree)]
        assert bool(is_violated) == (path_of(int(ids_L[0]), levels) != ids_L.tolist())


@pytest.mark.parametrize(("seed", "depth"), TREES)
def test_a_model_of_classes_alone_has_the_groups_of_its_class(seed: int, depth: int) -> None:
    levels, tree, logits = random_case(seed, depth)
    logits = logits[:, : tree.num_classes] + torch.zeros(1)
    for decoding in ("consistent", "independent"):
        found = pixels(decode(logits, tree, decoding=decoding))  # type: ignore[arg-type]
        for logits_K, ids_L in zip(pixels(logits), found, strict=True):
            assert ids_L.tolist() == path_of(int(logits_K.argmax()), levels)


def test_crafted_outputs_contradict_the_tree_only_when_taken_independently() -> None:
    tree = ClassTree(3, (Level(name="kind", groups=("a", "b"), parents=(0, 0, 1)),))
    logits = torch.tensor([2.0, -4.0, 1.0, -3.0, 3.0]).reshape(1, 5, 1, 1)
    assert decode(logits, tree, decoding="independent").flatten().tolist() == [0, 1]
    assert contradictions(decode(logits, tree, decoding="independent"), tree).all()
    assert decode(logits, tree, decoding="consistent").flatten().tolist() == [2, 1]


def test_sure_outputs_are_told_apart_where_fp32_rounds_probabilities_to_one() -> None:
    tree = ClassTree(2, (Level(name="kind", groups=("a",), parents=(0, 0)),))
    logits = torch.tensor([20.0, 25.0, 30.0]).reshape(1, 3, 1, 1)
    assert decode(logits, tree).flatten().tolist() == [1, 0]


@pytest.mark.parametrize("decoding", ["consistent", "independent"])
@pytest.mark.parametrize("back_off", [0.6, 0.9])
@pytest.mark.parametrize("is_flat", [False, True])
def test_back_off_is_to_the_lowest_level_that_is_sure(
    decoding: Decoding, back_off: float, is_flat: bool
) -> None:
    seen = set()
    for seed, depth in TREES:
        levels, tree, logits = random_case(seed, depth)
        if is_flat:
            logits = logits[:, : tree.num_classes]
        decided = pixels(decode(logits, tree, decoding=decoding))
        found = pixels(decode(logits, tree, decoding=decoding, back_off=back_off))
        for logits_N, whole, ids in zip(pixels(logits), decided, found, strict=True):
            if is_flat:
                exponentials = np.exp(logits_N.astype(np.float64))
                shares = exponentials / exponentials.sum()
                members = [
                    [label for label in range(tree.num_classes) if path_of(label, levels)[level] == group]
                    for level, group in enumerate(whole.tolist())
                ]
                probabilities = [shares[labels].sum() for labels in members]
            else:
                scores = [sigmoid(x) for x in parts(logits_N, tree)]
                probabilities = [s[i] for s, i in zip(scores, whole.tolist(), strict=True)]
            if min(abs(p - back_off) for p in probabilities) < 1e-6:
                continue  # rounding decides
            sure = [level for level, p in enumerate(probabilities) if p >= back_off]
            lowest = sure[0] if sure else len(whole)
            assert ids.tolist() == [UNDECIDED] * lowest + whole.tolist()[lowest:]
            seen.add(min(lowest, 2))
    assert seen >= {0, 1}, "the cases are too easy"


def test_other_numbers_of_outputs_are_refused() -> None:
    tree = ClassTree(3, (Level(name="kind", groups=("a", "b"), parents=(0, 0, 1)),))
    with pytest.raises(ValueError, match="expected 3 or 5 outputs, got 4"):
        decode(torch.zeros(1, 4, 2, 2), tree)


def test_decoding_works_without_values() -> None:
    tree = ClassTree(3, (Level(name="kind", groups=("a", "b"), parents=(0, 0, 1)),))
    found = decode(torch.zeros(2, 5, 4, 6, device="meta", dtype=torch.bfloat16), tree, back_off=0.5)
    assert (found.shape, found.dtype) == ((2, 2, 4, 6), torch.int16)
