"""The contract of every backbone: published channels and strides, gradients everywhere, any image size."""

from __future__ import annotations

import pytest
import torch

from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.backbones.mit import MIT_VARIANTS, mit_stages
from raydet.models.fusion.cmx import CMX

SMALL = ("nano", "b0")


def encoder(name: str, *, drop_path_rate: float = 0.0) -> DualStreamEncoder:
    variant = MIT_VARIANTS[name]
    fusions = [CMX(channels=c, num_heads=h) for c, h in zip(variant.channels, variant.num_heads, strict=True)]
    rgb_stages, aux_stages = (
        mit_stages(variant=variant, in_channels=channels, drop_path_rate=drop_path_rate)
        for channels in (3, 2)
    )
    return DualStreamEncoder(rgb_stages=rgb_stages, aux_stages=aux_stages, fusions=fusions)


def images(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, height, width), torch.randn(2, 2, height, width)


@pytest.mark.parametrize("name", MIT_VARIANTS)
def test_published_channels_and_strides_match(name: str) -> None:
    with torch.device("meta"):
        backbone = encoder(name).eval()
        maps = backbone(*images(64, 96)).maps
    assert tuple(x.shape[1] for x in maps) == backbone.channels
    assert tuple(64 // x.shape[2] for x in maps) == backbone.strides
    assert tuple(96 // x.shape[3] for x in maps) == backbone.strides


@pytest.mark.parametrize("name", MIT_VARIANTS)
def test_heads_divide_channels(name: str) -> None:
    variant = MIT_VARIANTS[name]
    assert all(c % h == 0 for c, h in zip(variant.channels, variant.num_heads, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = encoder(name)
    maps = backbone(*images(64, 64)).maps
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("hw", [(72, 104), (33, 47), (32, 32)])
def test_odd_sizes_run(name: str, hw: tuple[int, int]) -> None:
    with torch.no_grad():
        maps = encoder(name)(*images(*hw)).maps
    assert all(x.isfinite().all() for x in maps)
    for stride, x in zip((4, 8, 16, 32), maps, strict=True):
        assert x.shape[-2:] == tuple(-(-side // stride) for side in hw)


@pytest.mark.parametrize("name", SMALL)
def test_state_dict_round_trip(name: str) -> None:
    backbone, other, inputs = encoder(name).eval(), encoder(name).eval(), images(64, 64)
    other.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        for x, y in zip(backbone(*inputs).maps, other(*inputs).maps, strict=True):
            assert torch.equal(x, y)


def test_one_seed_gives_one_set_of_weights() -> None:
    built = []
    for _ in range(2):
        torch.manual_seed(7)
        built.append(encoder("nano").state_dict())
    assert all(torch.equal(built[0][key], built[1][key]) for key in built[0])


def test_evaluation_is_deterministic_and_training_drops_paths() -> None:
    backbone, inputs = encoder("nano", drop_path_rate=0.9), images(64, 64)
    with torch.no_grad():
        assert not torch.equal(backbone(*inputs).maps[-1], backbone(*inputs).maps[-1])
        backbone.eval()
        assert torch.equal(backbone(*inputs).maps[-1], backbone(*inputs).maps[-1])
