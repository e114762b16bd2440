"""Recipes of published runs: their settings and sizes, and how `raydet recipes` shows them."""

from __future__ import annotations

import pytest

from raydet.cli import main
from raydet.config import ConstantSchedule, GAFFFusion, MiTConfig, SGDConfig, TimmConfig, apply_overrides
from raydet.engine.averaging import decay_at
from raydet.models.build import describe_parameters
from raydet.recipes import RECIPES, recipe
from tune_spaces.gaff_phase1 import study

CMX_DETECTOR = 60_014_945
"""mit_b1 with FRM + FFM at every stage, two classes with the background."""


def test_gaff_as_published() -> None:
    run = recipe("gaff_as_published")
    model, train = run.model, run.train
    assert model.backbone == MiTConfig(variant="b1", drop_path_rate=0.0, init="seed")
    assert model.fusion == GAFFFusion(se_reduction=8, inter_shared=False, merge_bottleneck=False)
    assert (model.fusion_stages, model.elsewhere.kind, model.flow) == ((4,), "cmx", "fused")
    assert run.optim == SGDConfig(lr=0.02, momentum=0.9, weight_decay=1e-4, schedule=ConstantSchedule())
    assert (train.epochs, train.global_batch, run.optim.ema_decay) == (15, 16, None)


def test_parameters_of_gaff_as_published() -> None:
    channels = 512
    frm_ffm = (26 + 17) * channels**2 + (9 + 26) * channels + 2
    gaff = 4 * channels**2 // 8 + 4 * channels**2 + 2 * channels**2 + 2 * channels  # squeeze, gates, merge
    total = describe_parameters(recipe("gaff_as_published"))["total"]
    assert total == CMX_DETECTOR - frm_ffm + gaff == 50_429_791


def test_a_plain_gaff_differs_from_the_published_one() -> None:
    """In what the docs say of it."""
    plain = apply_overrides(recipe("rgbte_mit_b1"), {"model.fusion.kind": "gaff"})
    assert isinstance(plain.model.backbone, MiTConfig)
    assert (plain.model.flow, plain.model.backbone.drop_path_rate) == ("rectified", 0.1)
    assert study(plain).base.model.flow == "fused"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deeplabv3_resnet50", 41_999_962),
        ("deeplabv3_resnet101", 60_992_090),
        ("segformer_b5", 84_603_341),
        ("hiera_small", 34_582_989),
        ("hiera_base_plus", 69_372_813),
        ("hiera_large", 212_969_277),
    ],
)
@pytest.mark.parametrize("suffix", ["", "_published"])
def test_parameters_of_the_streethazards_comparison(name: str, suffix: str, expected: int) -> None:
    """T6.1, and our own for Hiera, with the 13 classes of the set; the embedded one has other classes."""
    classes = [f"class {number}" for number in range(13)]
    run = recipe(f"streethazards_{name}{suffix}")
    run = apply_overrides(run, {"data.classes": classes, "task.levels": []})
    assert describe_parameters(run)["total"] == expected


def test_recipes_are_listed_with_fusion_flow_and_drop_path(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipes"])
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == RECIPES.keys()
    assert lines["gaff_as_published"].startswith(
        "mit_b1 drop-path 0 gaff at 4, fused canvas (320, 416) 15 epochs"
    )
    assert lines["rgbte_mit_b1"].startswith("mit_b1 drop-path 0.1 cmx at 1234, rectified ")


def test_the_averages_warm_up_is_as_the_help_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipes", "--help"])
    assert "after 8990 updates" in " ".join(capsys.readouterr().out.split())
    assert decay_at(0.999, 8989) < 0.999 == decay_at(0.999, 8990)


def test_small_lite0_starts_from_weights_that_timm_publishes() -> None:
    backbone = recipe("small_lite0").model.backbone
    assert isinstance(backbone, TimmConfig)
    assert backbone.pretrained.path == f"timm://{backbone.name}.in1k"
    assert backbone.pretrained.strict
