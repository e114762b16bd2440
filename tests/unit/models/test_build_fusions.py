"""Every fusion of the config is built, trains, and has the expected number of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raydet.config import Experiment, apply_overrides
from raydet.data.build import open_source
from raydet.data.transforms import eval_transform
from raydet.errors import ConfigError
from raydet.models.build import build_model, describe_parameters
from raydet.recipes import recipe
from raydet.structures import collate
from tune_spaces import fusion_methods

FUSIONS: dict[str, dict[str, Any]] = {
    **fusion_methods.FUSIONS,
    "cssa_conv7": {"kind": "cssa", "variant": "conv7", "straight_through": True, "kernel_size": None},
}


def with_fusion(name: str, base: str = "demo") -> Experiment:
    return apply_overrides(recipe(base), {"model.fusion": FUSIONS[name]})


@pytest.mark.parametrize("name", FUSIONS)
def test_a_step_reaches_every_parameter(name: str) -> None:
    experiment = with_fusion(name)
    detector = build_model(experiment).train()
    source = open_source(experiment.data)
    batch = collate(
        [eval_transform(source.read(index), canvas_hw=experiment.data.canvas_hw) for index in range(2)]
    )
    sum(detector(batch).losses.values()).backward()
    trained = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert sum(p.numel() for p in detector.parameters()) == describe_parameters(experiment)["total"]


@pytest.mark.parametrize("name", FUSIONS)
def test_the_published_sizes_can_be_built(name: str) -> None:
    counts = describe_parameters(with_fusion(name, "rgbte_mit_b1"))
    others = {"cssa": 24, "add": 0, "late_concat": 0}
    if name in others:
        assert counts.get("fusion", 0) == others[name]
    widths = (64, 128, 320, 512)
    if name == "concat":
        assert counts["fusion"] == sum(2 * c**2 + c for c in widths)
    if name == "cssa_conv7":  # kernel sizes by ECA-Net's rule
        assert counts["fusion"] == sum(2 * c * k + 99 for c, k in zip(widths, (3, 3, 3, 5), strict=True))


def test_late_concatenation_widens_the_pyramid_only() -> None:
    late = describe_parameters(with_fusion("late_concat", "rgbte_mit_b1"))
    add = describe_parameters(with_fusion("add", "rgbte_mit_b1"))
    assert late["total"] - add["total"] == 256 * (64 + 128 + 320 + 512)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be odd, got 4"):
        apply_overrides(recipe("demo"), {"model.fusion": {"kind": "cssa", "kernel_size": 4}})


@pytest.mark.parametrize("modality", ["rgb", "thermal", "event"])
def test_controls_of_a_single_modality(modality: str) -> None:
    """One stream, and the same modality in both streams: the architecture of a fusion without a second sensor."""
    alone = {"model.fusion": {"kind": "identity"}, "model.elsewhere": {"kind": "identity"}}
    single = apply_overrides(recipe("demo"), {**alone, "model.rgb_modalities": [modality]})
    double = apply_overrides(
        recipe("demo"), {"model.rgb_modalities": [modality], "model.aux_modalities": [modality]}
    )
    torch.manual_seed(0)
    for experiment in (single, double):
        detector = build_model(experiment).eval()
        source = open_source(experiment.data)
        batch = collate([eval_transform(source.read(0), canvas_hw=experiment.data.canvas_hw)])
        detector(batch)
