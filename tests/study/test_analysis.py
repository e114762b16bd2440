"""Analyses of simulated studies whose true scores are known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raydet.cli.spaces import load_space
from raydet.errors import StudyError
from raydet.recipes import recipe
from raydet.report.analysis import Analysis, analyse
from raydet.report.conclusions import conclusions, limits, summary
from raydet.report.study import open_study
from raydet.report.tables import hypothesis_rows
from raydet.tune.cells import Trial
from raydet.tune.journal import Journal
from raydet.tune.options import StudyOptions
from raydet.tune.phases import recorded_study, remember_study
from raydet.tune.preregistration import protocol_of, remember_protocol
from raydet.tune.study import Hypothesis, Study
from tests.study.simulated import simulate

METHODS = load_space(
    "fusion_methods", recipe("demo"), {}, arms=["cmx", "cmx_early", "cmx_late", "gaff", "gaff_shared"]
)
GAFF = load_space("gaff_phase2", recipe("demo"), {})
PROMOTED = (
    {
        "kind": "promoted",
        "phase": "phase2_hyperparameter_tuning",
        "choices": [{"pattern": [stage], "mean": 0.6, "reason": "the best left"} for stage in (2, 3, 4)],
    },
    {
        "kind": "confirmation_selected",
        "codes": ["s3_r4_is0_mb1", "thermal"],
        "metric": "mAP",
        "means": [0.6, 0.4],
    },
)


def analysed(directory: Path) -> Analysis:
    """Analyse with few resamples: these tests need no precise noise of the images."""
    return analyse(open_study(directory), resamples=30)


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
    return analysed(directory)


def test_known_answers_are_found(methods: Analysis) -> None:
    assert {tested.hypothesis.name: tested.outcome for tested in methods.hypotheses} == {
        "F1": "supported",
        "F2": "supported",
        "F3": "supported",
        "F4": "supported",
        "F5": "not distinguishable",
    }
    assert methods.best_control is not None
    assert methods.best_control.name in ("thermal", "thermal_twice")
    assert {pair.verdict for pair in methods.against_control} == {"A is better"}


def test_equivalent_cells_are_not_distinguishable(methods: Analysis) -> None:
    (pair,) = methods.noise.equivalent_pairs
    assert (pair.a, pair.b, pair.verdict) == ("gaff_shared", "gaff", "not distinguishable")
    assert methods.noise.spread is not None
    # 11 cells of three runs, two of which are one function: 33 runs less 10 groups.
    assert methods.noise.spread.degrees == 33 - 10
    assert methods.without_images == ()
    assert methods.num_groups == 20


def test_with_one_seed_and_no_equivalent_cells_the_noise_is_unknown(tmp_path: Path) -> None:
    space = load_space("modalities", recipe("demo"), {})
    found = analysed(simulate(space, tmp_path, lambda trial: noisy({}, trial), seeds=1))
    assert found.noise.spread is None
    assert {pair.verdict for pair in found.against_control} == {"unknown"}
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
    return analysed(directory)


def test_equivalent_cells_measure_the_noise_of_a_study_with_one_seed(gaff: Analysis) -> None:
    assert gaff.noise.spread is not None
    assert gaff.noise.spread.degrees == 12 + 2
    assert len(gaff.noise.equivalent_pairs) == 12
    assert {pair.verdict for pair in gaff.noise.equivalent_pairs} == {"not distinguishable"}


def test_effects_and_hypotheses_of_phase_2(gaff: Analysis) -> None:
    answers = {tested.hypothesis.name: tested.outcome for tested in gaff.hypotheses}
    assert (answers["H1"], answers["H2"], answers["H3"]) == ("refuted", "not distinguishable", "supported")
    assert answers["H4"] == "not distinguishable"  # all gaps are alike
    shown = {row.name: row.outcome for row in hypothesis_rows(gaff)}
    assert shown["H4"] == "not distinguishable, on these images"  # how gaps vary over images is unknown
    assert shown["H2"] == "not distinguishable"
    effects = {effect.factor.letter: effect for effect in gaff.effects if effect.phase.startswith("phase2")}
    assert [level.label for level in effects["r"].levels] == ["4", "8"]
    assert effects["mb"].changes[0].comparison.difference == pytest.approx(0.11, abs=0.03)
    (interaction,) = [
        found for found in gaff.interactions if {factor.letter for factor in found.factors} == {"r", "mb"}
    ]
    assert interaction.pair.comparison.difference == pytest.approx(0.06, abs=0.03)


def test_the_winner_is_confirmed_on_fresh_seeds(gaff: Analysis) -> None:
    assert gaff.confirmation is not None
    assert (gaff.confirmation.a, gaff.confirmation.b) == ("s3_r4_is0_mb1", "thermal")
    assert gaff.confirmation.verdict == "A is better"


def test_without_match_records_the_noise_of_images_is_unknown(tmp_path: Path) -> None:
    directory = simulate(METHODS, tmp_path, lambda trial: noisy({}, trial), has_records=False)
    found = analysed(directory)
    assert len(found.without_images) == 11
    assert all(pair.comparison.sd_images is None for pair in found.pairs)


def test_a_directory_without_a_study_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="holds no study"):
        open_study(tmp_path)


def shifted(trial: Trial) -> float:
    """Scores of cells that claim to be equivalent but are not: they differ by five points."""
    return noisy({}, trial) - 0.05 * bool(trial.cell.values.get("model.fusion.inter_shared"))


def test_equivalent_cells_that_differ_are_reported_and_not_pooled(tmp_path: Path) -> None:
    found = analysed(simulate(GAFF, tmp_path, shifted, seeds=3, decisions=PROMOTED))
    assert [pair.is_different for pair in found.noise.equivalent_pairs] == [True] * 12
    assert found.noise.spread is not None
    assert found.noise.spread.sd < 0.015
    assert any("Do not trust small differences" in sentence for sentence in conclusions(found))


def test_with_one_seed_and_no_repeats_equivalent_cells_are_not_compared(tmp_path: Path) -> None:
    study = GAFF.model_copy(update={"phases": GAFF.phases[:-1]})
    found = analysed(simulate(study, tmp_path, shifted, seeds=1, decisions=PROMOTED[:1]))
    assert found.noise.equivalent_pairs == ()
    assert not any("equivalent cells" in sentence for sentence in conclusions(found))


def stages_only(trial: Trial) -> float | str:
    """Only the set of stages matters; for two of three sets the runs with a reduction of 8 have failed."""
    values = trial.cell.values
    stages = values.get("model.fusion_stages")
    if values.get("model.fusion.se_reduction") == 8 and stages != (4,):
        return "failed"
    return noisy({}, trial) + (0.1 if stages == (4,) else 0.0)


def test_sides_are_compared_over_common_values_of_other_factors(tmp_path: Path) -> None:
    found = analysed(simulate(GAFF, tmp_path, stages_only, seeds=2, decisions=PROMOTED))
    answers = {tested.hypothesis.name: tested.outcome for tested in found.hypotheses}
    assert answers["H1"] == "not distinguishable"
    effects = {effect.factor.letter: effect for effect in found.effects if effect.phase.startswith("phase2")}
    assert effects["r"].changes[0].verdict == "not distinguishable"
    assert effects["r"].changes[0].comparison.difference == pytest.approx(0.0, abs=0.02)
    assert any("runs failed: exp_" in sentence for sentence in limits(found))


def test_a_claim_with_a_missing_control_is_not_tested(tmp_path: Path) -> None:
    def quality(trial: Trial) -> float | str:
        return "failed" if trial.cell.code == "event" else noisy({"rgb": 0.3, "thermal": 0.3}, trial)

    found = analysed(simulate(METHODS, tmp_path, quality, seeds=2))
    answers = {tested.hypothesis.name: tested.outcome for tested in found.hypotheses}
    assert answers["F1"] == "not tested"


def test_a_cell_with_a_stopped_run_is_not_compared(tmp_path: Path) -> None:
    def quality(trial: Trial) -> float | str:
        return "stopped" if trial.cell.code == "gaff" and trial.seed > 42 else noisy({}, trial)

    found = analysed(simulate(METHODS, tmp_path, quality))
    assert "gaff" not in {cell.name for cell in found.results.arms}
    assert any("2 runs were stopped early" in sentence for sentence in limits(found))


@pytest.mark.parametrize(("level", "is_said"), [(0.01, True), (0.3, False)])
def test_detectors_that_have_hardly_learnt_are_reported(level: float, is_said: bool, tmp_path: Path) -> None:
    study = METHODS.model_copy(update={"factors": (), "phases": METHODS.phases[:1]})
    found = analysed(simulate(study, tmp_path, lambda trial: level, seeds=1))
    assert ("hardly learnt" in conclusions(found)[0]) == is_said
    assert ("hardly learnt" in summary(found)[1]) == is_said


@pytest.mark.parametrize(("margin", "is_said"), [(0.04, True), (0.06, False)])
def test_a_constant_answer_is_what_models_must_beat(margin: float, is_said: bool, tmp_path: Path) -> None:
    study = METHODS.model_copy(update={"factors": (), "phases": METHODS.phases[:1]})
    found = analysed(simulate(study, tmp_path, lambda trial: 0.3, seeds=1))
    constant = max(cell.mean for cell in found.results.controls) - margin
    found = replace(found, constant=constant)
    told = conclusions(found)
    assert f"The same class for all pixels would have mAP {constant:.4f}." in told
    assert ("hardly learnt" in told[0]) == ("hardly learnt" in summary(found)[1]) == is_said


def test_with_one_group_of_images_nothing_is_distinguishable(tmp_path: Path) -> None:
    found = analysed(simulate(METHODS, tmp_path, lambda trial: noisy({}, trial), num_groups=1))
    assert {pair.verdict for pair in found.against_control} == {"unknown"}
    assert any("one group" in sentence for sentence in limits(found))
    assert not any("as it should be" in sentence for sentence in conclusions(found))
    assert summary(found)[1] == "Found: no difference that was tested for."
    assert "from the best control; whether hypotheses F1, " in summary(found)[2]
    assert "hold (the noise is unknown)" in summary(found)[2]


def test_the_three_sentences_of_a_decided_study(methods: Analysis) -> None:
    compared, supported, unclear = summary(methods)
    assert compared.startswith("5 arms and 6 controls were compared by mAP, with 3 seeds each")
    assert "beat the best control" in supported
    assert supported.endswith("hypotheses F1, F2, F3, F4 are supported.")
    assert unclear == "Undecided: whether hypothesis F5 holds (not distinguishable)."


def test_without_controls_nothing_is_said_of_fusion(tmp_path: Path) -> None:
    study = METHODS.model_copy(update={"phases": METHODS.phases[1:], "hypotheses": ()})
    found = analysed(simulate(study, tmp_path, lambda trial: noisy({}, trial), seeds=2))
    assert found.results.controls == ()
    assert summary(found)[2] == "Undecided: whether fusion helps at all, as there are no controls."


def test_intervals_stay_within_the_range_of_ap(tmp_path: Path) -> None:
    found = analysed(simulate(METHODS, tmp_path, lambda trial: 0.9 if trial.seed % 2 else 0.1, seeds=2))
    estimates = [estimate for estimates in found.estimates.values() for estimate in estimates]
    assert {(estimate.low, estimate.high) for estimate in estimates} == {(0.0, 1.0)}
    assert {(pair.comparison.low, pair.comparison.high) for pair in found.pairs} == {(-1.0, 1.0)}


def test_the_noise_of_images_is_that_of_the_metric(tmp_path: Path) -> None:
    def spread_of(metric: str) -> float | None:
        study = METHODS.model_copy(update={"metric": metric})
        directory = simulate(study, tmp_path / metric, lambda trial: noisy({}, trial), seeds=2)
        return analysed(directory).pairs[0].comparison.sd_images

    # These detectors find an object at every threshold or not at all.
    assert spread_of("mAP_50") == pytest.approx(spread_of("mAP"))
    assert spread_of("AR_100") is None


def test_a_hypothesis_on_another_metric(tmp_path: Path) -> None:
    """AR_100 is what the trials say; mAP, by which the study is decided, is made equal in all of them."""
    claim = METHODS.hypotheses[0].claims[0]
    other = Hypothesis(name="A", text="It finds more.", claims=(claim,), metric="AR_100")
    own = Hypothesis(name="B", text="It is better.", claims=(claim,))
    undefined = Hypothesis(name="C", text="It finds more that is large.", claims=(claim,), metric="AR_large")
    study = METHODS.model_copy(update={"hypotheses": (other, own, undefined)})
    directory = simulate(study, tmp_path, lambda trial: noisy({"rgb": 0.3}, trial), has_records=False)
    path = directory / "journal.jsonl"
    text = re.sub(r'"mAP": [\d.]+', '"mAP": 0.5', path.read_text())
    path.write_text(re.sub(r'"AR_large": [\d.]+', '"AR_large": null', text))
    found = {tested.hypothesis.name: tested for tested in analysed(directory).hypotheses}
    assert found["A"].claims[0].comparison.difference == pytest.approx(0.3, abs=0.02)
    assert found["B"].claims[0].comparison.difference == 0
    assert found["C"].outcome == "not tested"
    assert [row.claims.rows[0][0] for row in hypothesis_rows(analysed(directory))[:2]] == [
        "cmx beats rgb by AR_100",
        "cmx beats rgb",
    ]


def test_a_hypothesis_on_a_metric_that_the_task_lacks_is_refused() -> None:
    wrong = METHODS.hypotheses[0].model_copy(update={"metric": "mIoU"})
    with pytest.raises(ValueError, match="no metric 'mIoU'"):
        Study(**{**dict(METHODS), "hypotheses": (wrong,)})


def test_a_later_command_with_fewer_seeds_removes_no_runs(tmp_path: Path) -> None:
    directory = simulate(METHODS, tmp_path, lambda trial: noisy({}, trial), seeds=3)
    with Journal(directory) as journal:
        remember_protocol(journal, protocol_of(METHODS, StudyOptions(storage=tmp_path, seeds=1)))
    found = analysed(directory)
    assert {len(cell.runs) for cell in found.results.arms} == {3}
    assert any("The protocol was changed after 33 results" in sentence for sentence in limits(found))


def test_a_gap_with_a_loss_that_is_not_finite_is_not_tested(tmp_path: Path) -> None:
    directory = simulate(GAFF, tmp_path, gaff_quality, seeds=1, decisions=PROMOTED)
    path = directory / "journal.jsonl"
    path.write_text(re.sub(r'"val_loss": 0\.4\d*', '"val_loss": NaN', path.read_text(), count=20))
    answers = {tested.hypothesis.name: tested.outcome for tested in analysed(directory).hypotheses}
    assert answers["H4"] == "not tested"


def test_a_confirmation_counts_once_it_is_complete(tmp_path: Path) -> None:
    def quality(trial: Trial) -> float | str:
        return "pending" if trial.name.endswith("_seed100043") else gaff_quality(trial)

    found = analysed(simulate(GAFF, tmp_path, quality, seeds=2, decisions=PROMOTED))
    assert found.confirmation is None
    assert any("have not run" in sentence for sentence in limits(found))


def test_phase_1_and_phase_2_may_share_a_journal(tmp_path: Path) -> None:
    first = load_space("gaff_phase1", recipe("demo"), {})
    with Journal(tmp_path) as journal:
        remember_study(first, journal)
        remember_study(GAFF, journal)
        assert recorded_study(journal) == GAFF


def test_a_hypothesis_registered_after_results_is_reported(tmp_path: Path) -> None:
    directory = simulate(
        METHODS.model_copy(update={"hypotheses": METHODS.hypotheses[:1]}),
        tmp_path,
        lambda trial: noisy({}, trial),
    )
    with Journal(directory) as journal:
        remember_study(METHODS, journal)
    sentences = limits(analysed(directory))
    assert "F2, F3, F4, F5: registered after 33 runs had finished." in sentences
