"""`--set`, and configs as files."""

from __future__ import annotations

import json

import pytest

from raydet.cli.options import adjusted
from raydet.config import (
    AdamWConfig,
    DetectionTask,
    Experiment,
    GAFFFusion,
    MiTConfig,
    RVTConfig,
    SGDConfig,
    StepSchedule,
    TimmConfig,
    WeightsConfig,
    apply_overrides,
    parse_override,
)
from raydet.errors import ConfigError
from raydet.recipes import RECIPES, recipe

BASE = recipe("rgbte_mit_b0")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    experiment = recipe(name)
    assert Experiment.from_json(experiment.to_json(), where="test") == experiment


def test_a_value_is_replaced_and_the_rest_stays() -> None:
    changed = apply_overrides(BASE, {"optim.lr": 0.01, "model.fusion_stages": [3, 4]})
    assert isinstance(changed.optim, SGDConfig)
    assert (changed.optim.lr, changed.model.fusion_stages) == (0.01, (3, 4))
    assert changed.train == BASE.train
    assert changed.fingerprint() != BASE.fingerprint()


def test_size_bins_are_read_as_on_the_command_line_and_survive_json() -> None:
    changed = apply_overrides(BASE, dict([parse_override("task.size_bins_px=[16, 48.5]")]))
    assert isinstance(changed.task, DetectionTask)
    assert changed.task.size_bins_px == (16.0, 48.5)
    assert Experiment.from_json(changed.to_json(), where="test") == changed


def test_a_config_without_a_task_detects() -> None:
    tree = json.loads(BASE.to_json())
    del tree["task"]
    assert Experiment.from_json(json.dumps(tree), where="test") == BASE


def test_a_config_of_an_older_raydet_is_read() -> None:
    expected = apply_overrides(BASE, {"task.miss_rate": True})
    tree = json.loads(expected.to_json())
    task = tree.pop("task")
    tree["evaluate"] = {name: value for name, value in task.items() if name not in ("kind", "metric")}
    assert Experiment.from_json(json.dumps(tree), where="test") == expected


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("demo", "6720db766a8d"),  # printed by commit ac6f741
        ("rgbte_mit_b0", "e21137c257b1"),
        ("small_lite0", "0b949ee0d8cc"),  # printed by commit 72bdc0a
    ],
)
def test_a_config_that_older_versions_knew_keeps_its_fingerprint(name: str, fingerprint: str) -> None:
    assert recipe(name).fingerprint() == fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"train.steps_per_epoch": 3},
        {"data.sampling.kind": "clips"},
        {"task.metric": "mAP_50"},
        {"task.miss_rate": True},
        {"task.event": {}},
    ],
)
def test_a_new_setting_has_a_fingerprint_of_its_own(change: dict[str, object]) -> None:
    assert apply_overrides(BASE, change).fingerprint() != BASE.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task.event": {"silence_bins": [1, 3]}}, "must ascend from 0, got [1, 3]"),
        ({"task.event": {"silence_bins": [0, 3, 3]}}, "must ascend from 0, got [0, 3, 3]"),
        ({"task.event": {}, "task.miss_rate": True}, "task.event leaves images out; set one of them"),
        ({"task.event": {"camera": "gen3"}}, "camera"),
    ],
)
def test_protocols_for_events_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BASE, change)
    assert message in str(caught.value)


def test_a_path_that_has_moved_is_answered_with_the_new_one(caplog: pytest.LogCaptureFixture) -> None:
    changed = apply_overrides(BASE, {"evaluate.miss_rate": True})
    assert changed == apply_overrides(BASE, {"task.miss_rate": True})
    assert "the config path evaluate.miss_rate is now task.miss_rate" in caplog.text


def test_zero_is_a_value() -> None:
    assert apply_overrides(BASE, {"optim.lr": 0.0}).optim.lr == 0.0


def test_kind_changes_the_member_and_keeps_what_both_have() -> None:
    optim = apply_overrides(BASE, {"optim.betas": [0.8, 0.9], "optim.kind": "adamw", "optim.lr": 1e-3}).optim
    assert isinstance(optim, AdamWConfig)
    assert (optim.lr, optim.betas, optim.weight_decay) == (1e-3, (0.8, 0.9), 1e-4)


def test_kinds_within_kinds_change_together() -> None:
    optim = apply_overrides(
        BASE, {"optim.schedule.gamma": 0.5, "optim.schedule.kind": "step", "optim.kind": "adamw"}
    ).optim
    assert isinstance(optim, AdamWConfig)
    assert optim.schedule == StepSchedule(gamma=0.5)


def test_an_object_replaces_a_section() -> None:
    fusion = apply_overrides(BASE, {"model.fusion": {"kind": "gaff", "se_reduction": 8}}).model.fusion
    assert fusion == GAFFFusion(se_reduction=8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"optim.lrr": 1}, "unknown config key 'optim.lrr'; did you mean optim.lr?"),
        ({"optin.lr": 1}, "unknown config key 'optin.lr'; did you mean optim?"),
        ({"optim.lr.x": 1}, "'optim.lr' has no parts"),
        ({"optim.lr": "fast"}, "should be a valid number"),
        ({"optim.lr": -1}, "greater than or equal to 0"),
        ({"model.fusion.kind": "gaf"}, "'cmx', 'gaff', 'cssa'"),
        ({"optim.kind": ["sgd"]}, "'sgd', 'adamw'"),
        ({"optim.schedule.kind": "linear"}, "'constant', 'step', 'cosine'"),
        ({"model.fusion_stages": [4, 3]}, "ascending without repeats"),
        ({"model.fusion_stages": [5]}, "less than or equal to 4"),
        ({"data.canvas_hw": [300, 400]}, "multiple of 32"),
        ({"data.classes": []}, "one or more different names"),
        ({"train.epochs": 0}, "greater than or equal to 1"),
        ({"train.epochs": 2.5}, "valid integer"),
        ({"task.size_bins_px": [0, 96]}, "greater than 0"),
        ({"task.size_bins_fraction": [0.2, 0.2]}, "must be two ascending numbers"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BASE, override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_without_value_shows_the_form() -> None:
    with pytest.raises(ConfigError, match=r"--set expects path=value"):
        parse_override("optim.lr")


def test_unknown_keys_in_a_file_name_the_file_and_the_key() -> None:
    tree = json.loads(BASE.to_json()) | {"epochs": 3}
    with pytest.raises(ConfigError, match=r"run/config\.json: epochs: Extra inputs"):
        Experiment.from_json(json.dumps(tree), where="run/config.json")


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BASE.seed = 1  # type: ignore[misc]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean rgbte_mit_b5"):
        recipe("rgbte_mit_b6")


def test_a_backbone_of_timm_with_published_weights() -> None:
    sets = [
        "model.backbone.pretrained.path=w.safetensors",
        "model.backbone.name=resnet50",
        "model.backbone.kind=timm",
    ]
    changed = apply_overrides(BASE, dict(map(parse_override, sets)))
    weights = WeightsConfig(path="w.safetensors")
    assert changed.model.backbone == TimmConfig(name="resnet50", drop_path_rate=0.1, pretrained=weights)
    assert changed.fingerprint() != BASE.fingerprint()
    with pytest.raises(ConfigError, match=r"did you mean model\.backbone\.pretrained\.path"):
        apply_overrides(BASE, {"model.backbone.pretrained.pth": "w.safetensors"})
    with pytest.raises(ConfigError, match="at least 1 character"):
        apply_overrides(BASE, {"model.backbone.pretrained.path": ""})


@pytest.mark.parametrize(
    ("base", "text", "label", "name"),
    [
        ("rgbte_mit_b0", "mit_b2", "mit_b2", "rgbte_mit_b2"),
        ("rgbte_mit_b0", "b2", "mit_b2", "rgbte_mit_b2"),
        ("rgbte_mit_b0", "resnet50", "resnet50", "rgbte_resnet50"),
        ("demo", "convnext_tiny", "convnext_tiny", "demo"),
    ],
)
def test_the_backbone_flag(base: str, text: str, label: str, name: str) -> None:
    changed = adjusted(recipe(base), backbone=text, data=None, epochs=None, sets=None)
    assert (changed.model.backbone.label, changed.name) == (label, name)
    back = adjusted(changed, backbone="mit_b0", data=None, epochs=None, sets=None)
    assert isinstance(back.model.backbone, MiTConfig)
    assert back.model.backbone.variant == "b0"


def test_the_backbone_flag_keeps_the_settings_of_rvt() -> None:
    base = apply_overrides(recipe("rgbte_mit_b0"), {"data.canvas_hw": [320, 448]})
    tiny = adjusted(base, backbone="rvt_tiny", data=None, epochs=None, sets=["model.backbone.memory=none"])
    large = adjusted(tiny, backbone="rvt_base", data=None, epochs=None, sets=None)
    assert (large.model.backbone.label, large.name) == ("rvt_base", "rgbte_rvt_base")
    assert isinstance(large.model.backbone, RVTConfig)
    assert large.model.backbone.memory == "none"


def test_rvt_refuses_a_canvas_that_it_cannot_divide() -> None:
    with pytest.raises(ConfigError, match=r"multiples of model\.backbone\.partition_px=64, got \[96, 128\]"):
        adjusted(recipe("demo"), backbone="rvt_tiny", data=None, epochs=None, sets=None)
