"""F1 and ranking of images, and the score threshold, against manual and exhaustive computation."""

from __future__ import annotations

import numpy as np
import pytest

from raydet.metrics.matches import MatchRecords
from raydet.report.drawings.ranking import DEFAULT_THRESHOLD, best_and_worst, image_scores

Found = tuple[int, float, bool]
"""Image, score, whether right."""


def records(objects: list[int], found: list[Found], groups: list[str] | None = None) -> MatchRecords:
    ids = np.array([f"image_{number}" for number in range(len(objects))])
    right_NT = np.zeros((len(found), 10), bool)
    right_NT[:, 0] = [is_right for _, _, is_right in found]
    wrong_NT = np.ones((len(found), 10), bool)
    wrong_NT[:, 0] = ~right_NT[:, 0]
    return MatchRecords(
        image_ids=ids,
        group_ids=ids if groups is None else np.array(groups),
        objects_IK=np.array(objects)[:, None],
        image_index_N=np.array([image for image, _, _ in found], np.int64),
        labels_N=np.zeros(len(found), np.int64),
        scores_N=np.array([score for _, score, _ in found]),
        is_right_NT=right_NT,
        is_wrong_NT=wrong_NT,
    )


def ranked(found: MatchRecords, count: int) -> tuple[list[int], list[int]]:
    return best_and_worst(image_scores(found).best_first(), found.group_ids, count)


def test_scores_of_three_images_match_a_manual_computation() -> None:
    # From 0.6 on: 2 right of 4 objects, F1 4/6. With 0.4: 3 right, 6/7. With 0.2: 6/9.
    found = [(0, 0.9, True), (0, 0.6, True), (1, 0.4, True), (1, 0.2, False), (2, 0.2, False)]
    scores = image_scores(records([2, 2, 0], found))
    assert scores.score_threshold == pytest.approx(0.3)
    assert scores.overall_f1 == pytest.approx(6 / 7)
    assert (scores.right_I.tolist(), scores.wrong_I.tolist(), scores.missed_I.tolist()) == (
        [2, 1, 0],
        [0, 0, 0],
        [0, 1, 0],
    )
    np.testing.assert_allclose(scores.f1, [1, 2 / 3, 1])


def test_the_best_images_have_most_right_and_the_worst_most_mistakes() -> None:
    found = [(0, 0.9, True), (1, 0.9, True), (1, 0.8, True), (3, 0.9, False)]
    # 0: one of one; 1: two of two; 2: nothing to find; 3: one wrong, one missed; 4: three missed.
    best, worst = ranked(records([1, 2, 0, 1, 3], found), 5)
    assert best == [1, 0, 2]
    assert worst == [4, 3]
    assert ranked(records([1, 2, 0, 1, 3], found), 1) == ([1], [4])


def test_equal_images_are_ordered_by_their_ids() -> None:
    assert ranked(records([1, 1, 1, 1], []), 2) == ([0, 1], [3, 2])


def test_each_sequence_is_shown_once_before_one_is_shown_again() -> None:
    equal = records([1] * 8, [], groups=["a", "a", "b", "b", "c", "c", "c", "d"])
    assert ranked(equal, 3) == ([0, 2, 1], [7, 6, 5])


def test_a_set_without_a_right_detection() -> None:
    scores = image_scores(records([1, 0], [(0, 0.7, False)]))
    assert (scores.score_threshold, scores.overall_f1) == (DEFAULT_THRESHOLD, 0.0)
    assert scores.f1.tolist() == [0, 1]


def test_an_empty_set() -> None:
    assert ranked(records([], []), 3) == ([], [])
    assert ranked(records([0], []), 3) == ([0], [])


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed: int) -> None:
    draw = np.random.default_rng(seed)
    found = [
        (int(draw.integers(6)), float(draw.integers(1, 9)) / 10, bool(draw.random() < 0.5)) for _ in range(30)
    ]
    objects = [sum(is_right for image, _, is_right in found if image == number) + 1 for number in range(6)]

    def f1_from(threshold: float) -> float:
        kept = [is_right for _, score, is_right in found if score >= threshold]
        return 2 * sum(kept) / (len(kept) + sum(objects))

    scores = image_scores(records(objects, found))
    best = max(f1_from(threshold) for threshold in np.arange(0, 1, 0.01))
    assert scores.overall_f1 == pytest.approx(best) == pytest.approx(f1_from(scores.score_threshold))
    assert min(abs(score - scores.score_threshold) for _, score, _ in found) > 0.04
