"""Hiera of Segment Anything 2 as a chain: timm's maps and gradients, two streams, recomputation, published names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from raydet.config import apply_overrides
from raydet.errors import ConfigError
from raydet.models.backbones.timm import timm_sizes, timm_stages
from raydet.models.build import build_model
from raydet.models.pretrained.names import timm_naming
from raydet.parallel.recompute import recompute_activations
from raydet.recipes import recipe

TINY = "sam2_hiera_tiny"
PUBLISHED = {  # millions of parameters in Segment Anything 2, and channels of the first map
    "sam2_hiera_tiny": (26.85, 96),
    "sam2_hiera_small": (33.95, 96),
    "sam2_hiera_base_plus": (68.68, 112),
    "sam2_hiera_large": (212.15, 144),
}


def changes(name: str, **more: Any) -> dict[str, Any]:
    return {
        "model.backbone": {"kind": "timm", "name": name},
        "model.elsewhere": {"kind": "identity"},
        **more,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_counts(name: str) -> None:
    millions, first = PUBLISHED[name]
    with torch.device("meta"):
        stages = timm_stages(name=name, in_channels=3)
    counted = sum(p.numel() for p in stages.parameters())
    assert counted / 1e6 == pytest.approx(millions, abs=0.005)
    assert timm_sizes(name).channels == (first, 2 * first, 4 * first, 8 * first)


@pytest.mark.parametrize("hw", [(64, 96), (224, 160)])
def test_maps_and_gradients_equal_timm(hw: tuple[int, int]) -> None:
    theirs = timm.create_model(TINY, features_only=True).double().eval()
    ours = timm_stages(name=TINY, in_channels=3).double().eval()
    by_stage = [tuple(stage.layers) for stage in ours]
    translate = timm_naming(by_stage, licence="").translate
    named = {translate(name.removeprefix("model.")): x for name, x in theirs.state_dict().items()}
    ours.load_state_dict(named)

    image = torch.randn(2, 3, *hw, dtype=torch.float64)
    x, maps = image, list[Tensor]()
    for stage in ours:
        x = stage(x)
        maps.append(x)
    features = theirs(image)
    assert len(maps) == len(features) == 4
    for x, y in zip(maps, features, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
    for tensors in (maps, features):
        torch.stack(
            [(x * torch.linspace(0, 1, x.numel()).view_as(x)).mean() for x in tensors]
        ).sum().backward()
    gradients = {translate(n.removeprefix("model.")): p.grad for n, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-7, atol=1e-12)


def test_two_streams_with_recomputation() -> None:
    built = build_model(apply_overrides(recipe("demo"), changes(TINY, **{"model.fusion.kind": "add"})))
    again = copy.deepcopy(built)
    recompute_activations(again.units().blocks, "block")
    inputs = torch.randn(1, 3, 64, 96), torch.randn(1, 2, 64, 96)
    for model in (built, again):
        torch.stack([x.square().mean() for x in model.encoder(*inputs).maps]).sum().backward()
    for (name, p), other in zip(built.encoder.named_parameters(), again.encoder.parameters(), strict=True):
        assert p.grad is not None, name
        assert torch.equal(p.grad, other.grad), name


def test_another_side_is_refused() -> None:
    model = build_model(apply_overrides(recipe("demo"), changes(TINY, **{"model.fusion_stages": []})))
    with pytest.raises(ConfigError, match=r"multiples of 32, got 720 x 1280; set data\.canvas_hw"):
        model.encoder(torch.zeros(1, 3, 720, 1280), torch.zeros(1, 0, 720, 1280))
