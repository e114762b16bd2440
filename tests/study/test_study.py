"""The study as data: cells, names, promotion."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydet.cli import main
from raydet.cli.spaces import load_space, space_names
from raydet.config import CSSAFusion, Experiment, apply_overrides
from raydet.errors import ConfigError, StudyError
from raydet.metrics.names import COCO_METRICS
from raydet.models.build import describe_parameters
from raydet.recipes import recipe
from raydet.tune.cells import canonical_code, grid_cells, promotion_cells, seeds_of, trials_of
from raydet.tune.journal import Event, Events, Journal, read_journal
from raydet.tune.options import StudyOptions
from raydet.tune.phases import all_trials, trials_by_phase
from raydet.tune.preregistration import Protocol, deviations, newest_protocol, protocol_of, remember_protocol
from raydet.tune.run import plan_study
from raydet.tune.select import Candidate, promote
from raydet.tune.summary import summary_row
from raydet.tune.trial_status import records_of
from tests.results import results_with
from tune_spaces import gaff_phase1, gaff_phase2

STUDY = gaff_phase2.study(recipe("rgbte_mit_b1"))
CONTROLS, FIRST, SECOND, CONFIRMATION = STUDY.phases
PHASE_1 = grid_cells(STUDY, FIRST, first_number=1)


def test_phase_1_has_the_eight_cells_of_the_guide() -> None:
    assert [cell.trial_name(42, 42) for cell in PHASE_1] == [
        "exp_001_s1_r4_is0_mb0",
        "exp_002_s2_r4_is0_mb0",
        "exp_003_s3_r4_is0_mb0",
        "exp_004_s4_r4_is0_mb0",
        "exp_005_s23_r4_is0_mb0",
        "exp_006_s34_r4_is0_mb0",
        "exp_007_s234_r4_is0_mb0",
        "exp_008_s1234_r4_is0_mb0",
    ]


def test_phase_2_has_24_cells_of_which_21_are_new() -> None:
    cells = promotion_cells(STUDY, SECOND, [(3,), (2, 3), (3, 4)], known=PHASE_1)
    assert len(cells) == 24
    assert len({cell.code for cell in (*PHASE_1, *cells)}) == 29
    new = [cell for cell in cells if cell not in PHASE_1]
    assert [cell.number for cell in new] == list(range(9, 30))
    # the order of the guide's table
    assert [cell.code for cell in cells[:8]] == [
        "s3_r4_is0_mb0",
        "s3_r4_is0_mb1",
        "s3_r4_is1_mb0",
        "s3_r4_is1_mb1",
        "s3_r8_is0_mb0",
        "s3_r8_is0_mb1",
        "s3_r8_is1_mb0",
        "s3_r8_is1_mb1",
    ]


def test_a_trial_has_the_settings_of_its_cell() -> None:
    (trial, *_) = trials_of(STUDY, PHASE_1[3:4], seeds_of(STUDY, 1))
    model = trial.experiment.model
    assert model.fusion_stages == (4,)
    assert (model.fusion.kind, model.elsewhere.kind, model.flow) == ("gaff", "cmx", "fused")
    assert trial.experiment.seed == STUDY.base.seed


def test_repeats_differ_in_seed_name_and_key() -> None:
    trials = trials_of(STUDY, PHASE_1[:1], seeds_of(STUDY, 3))
    assert [trial.name for trial in trials] == [
        "exp_001_s1_r4_is0_mb0",
        "exp_001_s1_r4_is0_mb0_seed43",
        "exp_001_s1_r4_is0_mb0_seed44",
    ]
    assert len({trial.key for trial in trials}) == 3


def test_both_spaces_agree_on_phase_1() -> None:
    alone = gaff_phase1.study(recipe("rgbte_mit_b1"))
    assert alone.base == STUDY.base
    assert alone.phases == (CONTROLS, FIRST)


def candidates_from(scores: dict[tuple[int, ...], list[float]]) -> list[Candidate]:
    return [Candidate(pattern=pattern, scores=tuple(values)) for pattern, values in scores.items()]


def test_promotion_prefers_a_new_size_within_the_margin() -> None:
    scores = {(4,): [0.834], (3,): [0.832], (2, 3, 4): [0.829], (1, 2, 3, 4): [0.819]}
    choices = promote(candidates_from(scores), metric=COCO_METRICS[0], top=3, margin=0.0066)
    assert [choice.pattern for choice in choices] == [(4,), (2, 3, 4), (3,)]
    assert "within the margin 0.0066" in choices[1].reason
    assert choices[0].reason == "mean 0.8340, the best remaining"


def test_promotion_without_margin_is_the_plain_ranking() -> None:
    scores = {(4,): [0.834], (3,): [0.832], (2, 3, 4): [0.829]}
    choices = promote(candidates_from(scores), metric=COCO_METRICS[0], top=3, margin=0.0)
    assert [choice.pattern for choice in choices] == [(4,), (3,), (2, 3, 4)]


def test_promotion_averages_over_seeds() -> None:
    scores = {(1,): [0.9, 0.1], (2,): [0.6, 0.6]}
    assert promote(candidates_from(scores), metric=COCO_METRICS[0], top=1, margin=0.0)[0].pattern == (2,)


def test_patterns_that_were_stopped_early_come_last() -> None:
    candidates = [
        Candidate(pattern=(1,), scores=(0.1,)),
        Candidate(pattern=(2,), scores=(0.9,), stopped_epoch=2),
        Candidate(pattern=(3,), scores=(0.3,), stopped_epoch=6),
        Candidate(pattern=(4,), scores=(0.4,), stopped_epoch=6),
    ]
    choices = promote(candidates, metric=COCO_METRICS[0], top=3, margin=0.5)
    assert [choice.pattern for choice in choices] == [(1,), (4,), (3,)]
    assert "when it was stopped early after epoch 6, as only 1 finished" in choices[1].reason


@given(
    st.lists(
        st.builds(
            Candidate,
            pattern=st.sets(st.integers(1, 4), min_size=1).map(lambda s: tuple(sorted(s))),
            scores=st.tuples(st.floats(0, 1)),
        ),
        unique_by=lambda c: c.pattern,
        min_size=1,
        max_size=8,
    ),
    st.randoms(),
    st.floats(0, 0.1),
)
def test_promotion_does_not_depend_on_the_order_and_stays_near_the_best(
    candidates: list[Candidate], random: object, margin: float
) -> None:
    choices = promote(candidates, metric=COCO_METRICS[0], top=3, margin=margin)
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert promote(shuffled, metric=COCO_METRICS[0], top=3, margin=margin) == choices
    assert len(choices) == min(3, len(candidates))
    ordered = sorted((c.mean for c in candidates), reverse=True)
    for rank, choice in enumerate(choices):
        assert choice.mean >= ordered[rank] - margin - 1e-12


def test_a_plan_lists_decided_trials_and_writes_nothing(tmp_path: Path) -> None:
    plan = plan_study(STUDY, StudyOptions(storage=tmp_path))
    controls = ["control_rgb", "control_thermal", "control_event", "control_baseline"]
    cells = [cell.trial_name(42, 42) for cell in PHASE_1]
    assert [trial["name"] for trial in plan["trials"]] == [*controls, *cells]
    assert {trial["status"] for trial in plan["trials"]} == {"pending"}
    assert plan["undecided"] == ["phase2_hyperparameter_tuning", "confirmation"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed_count", [1, 2])
def test_cells_survive_json(seed_count: int) -> None:
    for trial in trials_of(STUDY, PHASE_1, seeds_of(STUDY, seed_count)):
        assert type(trial).from_json(trial.to_json(), where="test") == trial


SLOW = (
    *("backbones", "backbone_families", "cssa_phase1", "cssa_phase2", "gaff_extensions", "gaff_phase1"),
    *("seg_fusion", "seg_heads", "streethazards_models"),
)
WITHOUT_CONTROLS = (
    *("event_memory", "event_small_objects"),
    *("memory", "seg_heads", "seg_hierarchy", "seg_resolution"),
    *("streethazards_augmentation", "streethazards_models", "streethazards_scales"),
)


def base_of(space: str) -> Experiment:
    """A small recipe of the space's task."""
    if space.startswith("streethazards_"):
        return recipe("anomaly_demo")
    if space.startswith("event_"):
        return recipe("event_demo")
    return recipe("seg_demo" if space.startswith("seg_") else "demo")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in space_names()]
)
def test_every_trial_of_every_space_can_be_built(name: str) -> None:
    study = load_space(name, base_of(name), {})
    trials = all_trials(study, Events([]), 1)
    assert len({trial.key for trial in trials}) == len({trial.name for trial in trials}) == len(trials)
    for factor in study.factors:
        assert factor.default in factor.values
    for trial in trials:
        assert describe_parameters(trial.experiment)["total"] > 0


def test_controls_of_fusion_methods_depend_on_the_modalities_of_the_data() -> None:
    def arms(missing: list[str]) -> dict[str, Experiment]:
        study = load_space("fusion_methods", apply_overrides(recipe("demo"), {"data.missing": missing}), {})
        trials = all_trials(study, Events([]), 1)
        return {trial.cell.code: trial.experiment for trial in trials}

    everything = arms([])
    assert list(everything)[:6] == ["rgb", "thermal", "event", "rgb_twice", "thermal_twice", "event_twice"]
    assert everything["cssa_trained"].model.fusion == CSSAFusion(straight_through=True)
    assert everything["gaff"].model.aux_modalities == ("thermal", "event")
    without_event = arms(["event"])
    assert "event" not in without_event
    assert without_event["gaff"].model.aux_modalities == ("thermal",)
    assert without_event["thermal_twice"].model.rgb_modalities == ("thermal",)
    with pytest.raises(StudyError, match="the data lack thermal, event: nothing is left to fuse with rgb"):
        arms(["thermal", "event"])


@pytest.mark.parametrize("path", ["model.fusion", "model.fusion.kind", "model"])
def test_overriding_a_setting_of_an_arm_is_refused(path: str) -> None:
    with pytest.raises(StudyError, match=rf"{path} is set, but the space fusion_methods varies model\."):
        load_space("fusion_methods", recipe("demo"), {path: "add"})
    with pytest.raises(StudyError, match=r"the space backbones varies model\.backbone\.variant"):
        load_space("backbones", recipe("demo"), {}, chosen=["model.backbone.variant"])


def test_arms_are_derived_from_the_overridden_base() -> None:
    study = load_space("modalities", recipe("demo"), {"model.fusion.kind": "gaff", "data.missing": ["event"]})
    trials = all_trials(study, Events([]), 1)
    assert [trial.cell.code for trial in trials] == ["rgb", "thermal", "rgb_thermal"]
    assert trials[2].experiment.model.fusion.kind == "gaff"
    assert all(trials[0].experiment.model.fusion_at(stage).kind == "identity" for stage in (1, 2, 3, 4))


@pytest.mark.parametrize("name", space_names())
def test_studies_and_trials_survive_json(name: str) -> None:
    study = load_space(name, base_of(name), {})
    assert type(study).from_json(study.to_json(), where="test") == study
    trials = all_trials(study, Events([]), 1)
    assert all(type(trial).from_json(trial.to_json(), where="test") == trial for trial in trials)
    rows = [summary_row(study, record) for record in records_of(trials, Events([]))]
    for factor in study.factors:
        assert {row[factor.path.split(".")[-1]] for row in rows} <= {*factor.values, None}


def test_a_space_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from tune_spaces.gaff_phase1 import study\n")
    assert load_space(str(path), recipe("demo"), {}).name == "gaff"
    path.write_text("studie = 1\n")
    with pytest.raises(ConfigError, match="must be a Python file with a function `study`"):
        load_space(str(path), recipe("demo"), {})
    with pytest.raises(ConfigError, match="No such file"):
        load_space(str(tmp_path / "missing.py"), recipe("demo"), {})


def test_every_space_that_compares_fusions_has_controls() -> None:
    for name in space_names():
        study = load_space(name, base_of(name), {"data.missing": ["event"]})
        codes = [trial.cell.code for trial in all_trials(study, Events([]), 1) if trial.cell.is_control]
        assert codes[:2] == ([] if name in WITHOUT_CONTROLS else ["rgb", "thermal"]), name


@pytest.mark.parametrize("name", [name for name in space_names() if name.startswith("seg_")])
def test_a_space_for_masks_asks_for_a_recipe_for_masks(name: str) -> None:
    with pytest.raises(StudyError, match=rf"the space {name} expects a recipe for masks, got demo"):
        load_space(name, recipe("demo"), {})


def test_the_losses_of_seg_hierarchy_need_a_class_tree() -> None:
    with pytest.raises(StudyError, match="the task has none"):
        load_space("seg_hierarchy", apply_overrides(recipe("seg_demo"), {"task.levels": []}), {})


def test_equivalent_cells_have_different_seeds_and_one_canonical_code() -> None:
    cells = promotion_cells(STUDY, SECOND, [(3,)], known=PHASE_1)
    trials = {trial.cell.code: trial for trial in trials_of(STUDY, cells, seeds_of(STUDY, 1))}
    canonical, other = trials["s3_r4_is0_mb0"], trials["s3_r4_is1_mb0"]
    assert (canonical.experiment.seed, other.experiment.seed) == (42, 1042)
    assert other.name == "exp_010_s3_r4_is1_mb0"
    assert canonical_code(STUDY, other.cell) == canonical.cell.code
    assert len({canonical_code(STUDY, cell) for cell in cells}) == 4


def test_the_winner_and_the_best_control_run_again_with_fresh_seeds() -> None:
    journal = Events(
        [
            Event("promoted", "", {"phase": SECOND.name, "choices": [{"pattern": [3]}]}),
            Event("confirmation_selected", "", {"codes": ["s3_r8_is0_mb1", "thermal"]}),
        ]
    )
    *_, again = trials_by_phase(STUDY, journal, 3).values()
    assert [trial.name for trial in again] == [
        *(f"control_thermal_seed{seed}" for seed in (100042, 100043, 100044)),
        *(f"exp_013_s3_r8_is0_mb1_seed{seed}" for seed in (100042, 100043, 100044)),
    ]
    assert {trial.phase for trial in again} == {"confirmation"}
    assert len({trial.key for trial in all_trials(STUDY, journal, 3)}) == 3 * (4 + 8 + 7) + 6


def test_a_choice_of_arms_keeps_the_controls() -> None:
    study = load_space("fusion_methods", recipe("demo"), {}, arms=["add", "cmx", "gaff"])
    codes = [trial.cell.code for trial in all_trials(study, Events([]), 1)]
    assert codes == [
        "rgb",
        "thermal",
        "event",
        "rgb_twice",
        "thermal_twice",
        "event_twice",
        "add",
        "cmx",
        "gaff",
    ]
    assert study.factors[0].equivalent_values == ()
    assert [hypothesis.name for hypothesis in study.hypotheses] == ["F1", "F2", "F5"]
    with pytest.raises(StudyError, match="fusion_methods has no arm 'gaf'; it has add, concat"):
        load_space("fusion_methods", recipe("demo"), {}, arms=["gaf"])


def test_a_changed_protocol_is_a_deviation(tmp_path: Path) -> None:
    def rules(seeds: int) -> Protocol:
        return protocol_of(STUDY, StudyOptions(storage=tmp_path, seeds=seeds))

    with Journal(tmp_path) as journal:
        assert remember_protocol(journal, rules(3)) is None
        assert remember_protocol(journal, rules(3)) is None
        journal.append("finished", key="a", name="a", results=results_with({}))
        deviation = remember_protocol(journal, rules(4))
        assert deviation is not None
        assert deviation.changes[0] == "seeds (42, 43, 44) became (42, 43, 44, 45)"
        assert deviation.num_finished == 1
        assert remember_protocol(journal, rules(4)) is None
        assert newest_protocol(read_journal(tmp_path)) == rules(4)
        assert len(deviations(journal)) == 1


@pytest.mark.slow
def test_spaces_are_listed_with_their_cost(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["spaces", "--recipe", "demo", "--seeds", "2"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(space_names())
    gaff = next(line for line in lines if line.startswith("gaff_phase2"))
    assert " 70 trials " in gaff  # two seeds of 4 controls, 29 cells and 2 confirmed cells
    not_applicable = [line.split()[0] for line in lines if "not applicable" in line]
    assert not_applicable == [name for name in space_names() if name.startswith("seg_")]
