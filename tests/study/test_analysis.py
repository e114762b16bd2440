"""What is said of studies whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydet.errors import StudyError
from raydet.recipes import recipe
from raydet.report.analysis import Analysis, analyse
from raydet.report.study import open_study
from raydet.tune.cells import Trial
from raydet.tune.spaces import load_space
from tests.study.simulated import simulate

METHODS = load_space(
    "fusion_methods", recipe("demo"), {}, arms=["cmx", "cmx_early", "cmx_late", "gaff", "gaff_shared"]
)
GAFF = load_space("gaff_phase2", recipe("demo"), {})
PROMOTED = (
    {
        "event": "promoted",
        "phase": "phase2_hyperparameter_tuning",
        "choices": [{"pattern": [stage], "mean": 0.6, "reason": "the best left"} for stage in (2, 3, 4)],
    },
    {"event": "confirming", "codes": ["s3_r4_is0_mb1", "thermal"], "metric": "mAP", "means": [0.6, 0.4]},
)


def noisy(truth: dict[str, float], trial: Trial, *, sd: float = 0.005) -> float:
    generator = np.random.default_rng(int(trial.key, 16) % 2**32)
    return truth.get(trial.cell.code, 0.6) + generator.normal(0, sd)


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    truth = {
        "rgb": 0.3,
        "thermal": 0.4,
        "event": 0.3,
        "rgb_twice": 0.3,
        "thermal_twice": 0.4,
        "event_twice": 0.3,
        "cmx_early": 0.45,
    }
    directory = simulate(METHODS, tmp_path_factory.mktemp("runs"), lambda trial: noisy(truth, trial))
    return analyse(open_study(directory))


def test_the_known_answers_are_found(methods: Analysis) -> None:
    assert {tested.hypothesis.name: tested.answer for tested in methods.hypotheses} == {
        "F1": "supported",
        "F2": "supported",
        "F3": "supported",
        "F4": "not distinguishable",
    }
    assert methods.best_control is not None
    assert methods.best_control.name in ("thermal", "thermal_twice")
    assert {versus.verdict for versus in methods.against_control} == {"A is better"}


def test_the_twins_are_not_distinguishable(methods: Analysis) -> None:
    (twin,) = methods.noise.twins
    assert (twin.a, twin.b, twin.verdict) == ("gaff_shared", "gaff", "not distinguishable")
    assert methods.noise.spread is not None
    # 11 cells of three runs, two of which are one function: 33 runs less 10 groups.
    assert methods.noise.spread.degrees == 33 - 10
    assert methods.has_pictures
    assert methods.num_groups == 20


def test_one_seed_says_nothing_of_cells_without_twins(tmp_path: Path) -> None:
    space = load_space("modalities", recipe("demo"), {})
    found = analyse(open_study(simulate(space, tmp_path, lambda trial: noisy({}, trial), seeds=1)))
    assert found.noise.spread is None
    assert {versus.verdict for versus in found.against_control} == {"unknown"}
    assert all(estimate.low is None for phase in found.estimates.values() for estimate in phase)


def gaff_quality(trial: Trial) -> float:
    """The bottleneck helps by four points, and by 16 with a reduction of 8; sharing does nothing."""
    values = trial.cell.values
    bottleneck, reduction = (
        values.get("model.fusion.merge_bottleneck"),
        values.get("model.fusion.se_reduction"),
    )
    gain = 0.04 * bool(bottleneck) + 0.12 * bool(bottleneck and reduction == 8)
    return noisy({"rgb": 0.3, "thermal": 0.4, "event": 0.3}, trial) + gain


@pytest.fixture(scope="module")
def gaff(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    directory = simulate(GAFF, tmp_path_factory.mktemp("runs"), gaff_quality, seeds=1, decisions=PROMOTED)
    return analyse(open_study(directory))


def test_twins_measure_the_noise_of_a_study_with_one_seed(gaff: Analysis) -> None:
    assert gaff.noise.seeds is not None  # of the confirmation, which has two
    assert gaff.noise.spread is not None
    assert gaff.noise.spread.degrees == 12 + 2
    assert len(gaff.noise.twins) == 12
    assert {versus.verdict for versus in gaff.noise.twins} == {"not distinguishable"}


def test_effects_and_hypotheses_of_phase_2(gaff: Analysis) -> None:
    answers = {tested.hypothesis.name: tested.answer for tested in gaff.hypotheses}
    assert (answers["H1"], answers["H2"], answers["H3"]) == ("refuted", "not distinguishable", "supported")
    assert answers["H4"] == "unknown"  # one gap per cell, all alike: no noise is known
    effects = {effect.factor.letter: effect for effect in gaff.effects if effect.phase.startswith("phase2")}
    assert [level.label for level in effects["r"].levels] == ["4", "8"]
    assert effects["mb"].changes[0].comparison.difference == pytest.approx(0.11, abs=0.03)
    (interaction,) = [
        found for found in gaff.interactions if {factor.letter for factor in found.factors} == {"r", "mb"}
    ]
    assert interaction.versus.comparison.difference == pytest.approx(0.06, abs=0.03)


def test_the_winner_is_confirmed_on_fresh_seeds(gaff: Analysis) -> None:
    assert gaff.confirmation is not None
    assert (gaff.confirmation.a, gaff.confirmation.b) == ("s3_r4_is0_mb1", "thermal")
    assert gaff.confirmation.verdict == "A is better"


def test_without_match_records_the_pictures_noise_is_said_to_be_unknown(tmp_path: Path) -> None:
    directory = simulate(METHODS, tmp_path, lambda trial: noisy({}, trial), has_records=False)
    found = analyse(open_study(directory))
    assert not found.has_pictures
    assert all(versus.comparison.sd_pictures is None for versus in found.pairs)


def test_a_directory_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="holds no study"):
        open_study(tmp_path)
