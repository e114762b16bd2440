"""Verdicts on simulated studies with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raydet.stats.comparison import Comparison, Spread, compare, holm, interval, pooled_spread, seeds_needed

NUM_STUDIES = 400
NUM_FAMILIES = 120
"""Fewer, because each has many comparisons."""
NUM_IMAGES = 400
SD_IMAGE = 0.08
"""Standard deviation of one image's contribution to the difference."""
SD_SEED = 0.0066
"""Standard deviation of mAP over repeats of a published run."""


def simulated(
    generator: np.random.Generator, *, gain: float, seeds: int, num_groups: int = NUM_IMAGES
) -> Comparison:
    """A study of two arms on one set of images; each group of images has its own difference between the arms."""
    offsets = generator.normal(0, SD_IMAGE / np.sqrt(NUM_IMAGES / num_groups), num_groups)
    a = 0.5 + gain + offsets.mean() + generator.normal(0, SD_SEED, seeds)
    b = 0.5 + generator.normal(0, SD_SEED, seeds)
    times = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=200)
    resampled = times @ offsets / num_groups + gain
    return compare([a.tolist()], [b.tolist()], resampled, num_groups=num_groups)


@pytest.mark.parametrize("num_groups", [4, 20, NUM_IMAGES])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_arms_are_called_different_in_at_most_one_of_twenty_studies(
    seeds: int, num_groups: int
) -> None:
    generator = np.random.default_rng(seeds)
    found = [
        simulated(generator, gain=0.0, seeds=seeds, num_groups=num_groups).verdict for _ in range(NUM_STUDIES)
    ]
    wrong = sum(verdict != "not distinguishable" for verdict in found)
    # The 99th percentile for a rate of 5 %.
    assert wrong <= stats.binom.ppf(0.99, NUM_STUDIES, 0.05)


@pytest.mark.parametrize("seeds", [3, 5])
def test_two_sides_of_the_same_runs(seeds: int) -> None:
    """What a seed does to both sides alike is no noise of their difference; the rest is that of a paired t test."""
    generator = np.random.default_rng(7)
    num_wrong = num_found = 0
    for _ in range(NUM_STUDIES):
        differences = generator.normal(0, SD_SEED, seeds)
        images = generator.normal(0, 1e-9, 200)
        equal = compare([differences.tolist()], (), images, num_groups=NUM_IMAGES)
        assert equal.p_value == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=1e-4)
        num_wrong += equal.verdict != "not distinguishable"
        gained = compare([(differences + 0.03).tolist()], (), images + 0.03, num_groups=NUM_IMAGES)
        num_found += gained.verdict == "A is better"
        assert gained.mean_b == 0.0
    assert num_wrong <= stats.binom.ppf(0.99, NUM_STUDIES, 0.05)
    assert num_found >= 0.9 * NUM_STUDIES


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_gain_of_three_points_is_found(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    found = [simulated(generator, gain=0.03, seeds=seeds).verdict for _ in range(NUM_STUDIES)]
    assert found.count("A is better") >= 0.9 * NUM_STUDIES
    assert "B is better" not in found


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_covers_the_truth_in_93_to_97_percent(seeds: int) -> None:
    generator = np.random.default_rng(100 + seeds)
    studies = [simulated(generator, gain=0.01, seeds=seeds) for _ in range(2 * NUM_STUDIES)]
    held = sum(study.low <= 0.01 <= study.high for study in studies if study.low is not None)
    assert 0.93 <= held / len(studies) <= 0.975  # 800 studies: one standard deviation is 0.7 %


def test_without_noise_of_images_it_equals_the_t_test() -> None:
    a, b = [0.50, 0.52, 0.51], [0.48, 0.49, 0.47, 0.485]
    found = compare([a], [b], np.zeros(100), num_groups=10)
    expected = stats.ttest_ind(a, b)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("scores", [[0.97, 0.99], [0.01, 0.04], [0.2, 0.7]])
def test_intervals_stay_within_the_range_of_the_metric(scores: list[float]) -> None:
    low, high = interval([scores], None, num_groups=0, spread=None, bounds=(0.0, 1.0)) or (None, None)
    free = interval([scores], None, num_groups=0, spread=None)
    assert free is not None
    assert (low, high) == (max(0.0, free[0]), min(1.0, free[1]))
    assert free[0] < 0.0 or free[1] > 1.0  # the test would show nothing otherwise
    for a, b in (([0.0, 0.9], scores), (scores, [0.0, 0.9])):
        bounded = compare([a], [b], None, num_groups=0, bounds=(0.0, 1.0))
        unbounded = compare([a], [b], None, num_groups=0)
        assert unbounded.low is not None
        assert unbounded.high is not None
        assert unbounded.low < -1.0 or unbounded.high > 1.0
        assert (bounded.low, bounded.high) == (max(-1.0, unbounded.low), min(1.0, unbounded.high))
        assert (bounded.p_value, bounded.verdict) == (unbounded.p_value, unbounded.verdict)


def test_with_one_run_on_a_side_the_noise_is_unknown() -> None:
    found = compare([[0.9]], [[0.1, 0.2]], np.full(10, 0.75), num_groups=10)
    assert found.verdict == "unknown"
    assert found.low is None
    assert found.difference == pytest.approx(0.75)


def test_equal_bits_do_not_differ() -> None:
    assert compare([[0.5, 0.5]], [[0.5, 0.5]], np.zeros(10), num_groups=10).verdict == "not distinguishable"


def test_with_one_group_of_images_the_noise_is_unknown() -> None:
    assert compare([[0.9, 0.8]], [[0.1, 0.2]], np.full(10, 0.7), num_groups=1).verdict == "unknown"


def test_the_predicted_number_of_seeds_is_enough() -> None:
    """A difference of 1.5 points is found with the expected probability; 1 point is below the noise of the images."""

    def needed(difference: float) -> int | None:
        sd_images = SD_IMAGE / np.sqrt(NUM_IMAGES)
        spread = Spread(SD_SEED, 4)
        return seeds_needed(difference, spread=spread, sd_images=sd_images, num_groups=NUM_IMAGES)

    assert needed(0.01) is None
    enough = needed(0.015)
    assert enough is not None
    generator = np.random.default_rng(0)
    found = [simulated(generator, gain=0.015, seeds=enough).verdict for _ in range(NUM_STUDIES)]
    assert found.count("A is better") / NUM_STUDIES == pytest.approx(0.8, abs=0.08)


def test_an_undecided_comparison_needs_more_seeds() -> None:
    found = compare([[0.50, 0.51]], [[0.48, 0.49]], np.zeros(10), num_groups=10)
    assert found.verdict == "not distinguishable"
    assert found.seeds_needed is not None
    assert found.seeds_needed > 2


def test_holm_matches_a_manual_computation() -> None:
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])


def simulated_family(
    generator: np.random.Generator, *, arms: int, seeds: int, gain: float = 0.0
) -> list[str]:
    """Verdicts on every arm against the first, with a pooled spread; `gain` is added to the second arm."""
    scores = 0.5 + generator.normal(0, SD_SEED, (arms, seeds))
    scores[1] += gain
    spread = pooled_spread(scores.tolist())
    found = [
        compare([row.tolist()], [scores[0].tolist()], None, num_groups=0, spread=spread) for row in scores[1:]
    ]
    corrected = holm([comparison.p_value or 0.0 for comparison in found])
    return [comparison.verdict_at(p) for comparison, p in zip(found, corrected, strict=True)]


@pytest.mark.parametrize(("arms", "seeds"), [(4, 2), (14, 3)])
def test_of_many_equal_arms_any_is_called_different_in_at_most_one_of_twenty_studies(
    arms: int, seeds: int
) -> None:
    generator = np.random.default_rng(arms)
    studies = [simulated_family(generator, arms=arms, seeds=seeds) for _ in range(NUM_FAMILIES)]
    wrong = sum(set(verdicts) != {"not distinguishable"} for verdicts in studies)
    assert wrong <= stats.binom.ppf(0.99, NUM_FAMILIES, 0.05)


@pytest.mark.parametrize(("noisy", "rate"), [(1, 0.14), (2, 0.08)])
def test_arms_that_are_noisier_than_the_rest_are_rarely_called_different(noisy: int, rate: float) -> None:
    """A single comparison; with only a pooled spread, the error rate would be one in three to four."""
    generator = np.random.default_rng(noisy)
    wrong = 0
    for _ in range(NUM_STUDIES):
        sds = np.where(np.arange(13) < noisy, 3 * SD_SEED, SD_SEED)
        scores = (0.5 + generator.normal(0, sds[:, None], (13, 3))).tolist()
        found = compare([scores[0]], [scores[1]], None, num_groups=0, spread=pooled_spread(scores))
        wrong += found.verdict != "not distinguishable"
    assert wrong <= stats.binom.ppf(0.99, NUM_STUDIES, rate)


def test_among_many_arms_three_points_are_still_found() -> None:
    generator = np.random.default_rng(0)
    studies = [simulated_family(generator, arms=14, seeds=3, gain=0.03) for _ in range(NUM_FAMILIES)]
    assert sum(verdicts[0] == "A is better" for verdicts in studies) >= 0.9 * NUM_FAMILIES


def test_a_side_of_several_cells_is_the_mean_of_their_means() -> None:
    """Two cells against two, unequal numbers of runs: the contrast of an analysis of variance, by hand."""
    a, b = [[0.5, 0.7], [0.3]], [[0.4], [0.2, 0.2, 0.5]]
    spread = Spread(0.1, 4)
    found = compare(a, b, None, num_groups=0, spread=spread)
    assert found.difference == pytest.approx((0.6 + 0.3) / 2 - (0.4 + 0.3) / 2)
    error = 0.1 * np.sqrt((1 / 2 + 1 + 1 + 1 / 3) / 4)
    assert found.low == pytest.approx(found.difference - stats.t.ppf(0.975, 4) * error)
    assert found.p_value == pytest.approx(2 * stats.t.sf(found.difference / error, 4))
