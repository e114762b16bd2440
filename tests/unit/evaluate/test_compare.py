"""The verdict against cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raydet.evaluate.compare import Comparison, compare, seeds_needed

NUM_STUDIES = 400
NUM_PICTURES = 400
SD_PICTURE = 0.08
"""Of one picture's contribution to the difference."""
SD_SEED = 0.0066
"""Of a published run's mAP over repeats."""


def simulated(
    generator: np.random.Generator, *, gain: float, seeds: int, num_groups: int = NUM_PICTURES
) -> Comparison:
    """A study of two arms on one set of pictures; each group of them has its own liking for either arm."""
    liking = generator.normal(0, SD_PICTURE / np.sqrt(NUM_PICTURES / num_groups), num_groups)
    a = 0.5 + gain + liking.mean() + generator.normal(0, SD_SEED, seeds)
    b = 0.5 + generator.normal(0, SD_SEED, seeds)
    times = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=200)
    resampled = times @ liking / num_groups + gain
    return compare(a.tolist(), b.tolist(), resampled, num_groups=num_groups)


@pytest.mark.parametrize("num_groups", [4, 20, NUM_PICTURES])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_arms_are_called_different_in_one_of_twenty_studies_at_most(
    seeds: int, num_groups: int
) -> None:
    generator = np.random.default_rng(seeds)
    found = [
        simulated(generator, gain=0.0, seeds=seeds, num_groups=num_groups).verdict for _ in range(NUM_STUDIES)
    ]
    wrong = sum(verdict != "not distinguishable" for verdict in found)
    # As many as chance allows for a rate of 5 %, one time in a hundred.
    assert wrong <= stats.binom.ppf(0.99, NUM_STUDIES, 0.05)


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_gain_of_three_points_is_found(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    found = [simulated(generator, gain=0.03, seeds=seeds).verdict for _ in range(NUM_STUDIES)]
    assert found.count("A is better") >= 0.9 * NUM_STUDIES
    assert "B is better" not in found


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_holds_the_truth_in_93_to_97_percent(seeds: int) -> None:
    generator = np.random.default_rng(100 + seeds)
    studies = [simulated(generator, gain=0.01, seeds=seeds) for _ in range(2 * NUM_STUDIES)]
    held = sum(study.low <= 0.01 <= study.high for study in studies if study.low is not None)
    assert 0.93 <= held / len(studies) <= 0.975  # 800 studies: one standard deviation is 0.7 %


def test_without_noise_of_pictures_it_is_the_t_test() -> None:
    a, b = [0.50, 0.52, 0.51], [0.48, 0.49, 0.47, 0.485]
    found = compare(a, b, np.zeros(100), num_groups=10)
    expected = stats.ttest_ind(a, b)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_one_run_on_a_side_knows_nothing_of_noise() -> None:
    found = compare([0.9], [0.1, 0.2], np.full(10, 0.75), num_groups=10)
    assert found.verdict == "unknown"
    assert found.low is None
    assert found.difference == pytest.approx(0.75)


def test_equal_bits_do_not_differ() -> None:
    assert compare([0.5, 0.5], [0.5, 0.5], np.zeros(10), num_groups=10).verdict == "not distinguishable"


def test_one_group_of_pictures_knows_nothing_of_noise() -> None:
    assert compare([0.9, 0.8], [0.1, 0.2], np.full(10, 0.7), num_groups=1).verdict == "unknown"


def test_as_many_seeds_as_it_says_are_enough() -> None:
    """A difference of 1.5 points, found with the chance that was asked for; one of 1 point drowns in the pictures."""
    noise = {
        "sd_seeds": SD_SEED,
        "sd_pictures": SD_PICTURE / np.sqrt(NUM_PICTURES),
        "num_groups": NUM_PICTURES,
    }
    assert seeds_needed(0.01, **noise) is None
    enough = seeds_needed(0.015, **noise)
    assert enough is not None
    generator = np.random.default_rng(0)
    found = [simulated(generator, gain=0.015, seeds=enough).verdict for _ in range(NUM_STUDIES)]
    assert found.count("A is better") / NUM_STUDIES == pytest.approx(0.8, abs=0.08)


def test_who_cannot_tell_needs_more_seeds_than_he_has() -> None:
    found = compare([0.50, 0.51], [0.48, 0.49], np.zeros(10), num_groups=10)
    assert found.verdict == "not distinguishable"
    assert found.seeds_needed is not None
    assert found.seeds_needed > 2
