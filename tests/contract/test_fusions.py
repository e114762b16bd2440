"""What every fusion promises, under either flow, alone and inside an encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.backbones.mit import MIT_VARIANTS
from raydet.models.fusion.base import Flow, Fusion
from raydet.models.fusion.cmx import CMX
from raydet.models.fusion.gaff import GAFF
from raydet.models.fusion.identity import Identity

Factory = Callable[[int, int, Flow], Fusion]

FUSIONS: dict[str, Factory] = {
    "cmx": lambda channels, heads, flow: CMX(channels=channels, num_heads=heads, flow=flow),
    "gaff": lambda channels, heads, flow: GAFF(channels=channels, flow=flow),
    "gaff_shared": lambda channels, heads, flow: GAFF(channels=channels, inter_shared=True, flow=flow),
    "gaff_bottleneck": lambda channels, heads, flow: GAFF(
        channels=channels, merge_bottleneck=True, flow=flow
    ),
    "identity": lambda channels, heads, flow: Identity(),
}
FLOWS: tuple[Flow, ...] = get_args(Flow)

every_fusion = pytest.mark.parametrize("make", FUSIONS.values(), ids=FUSIONS)
every_flow = pytest.mark.parametrize("flow", FLOWS)


def maps(height: int = 8, width: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 16, height, width), torch.randn(2, 16, height, width)


@every_flow
@every_fusion
def test_every_parameter_and_every_input_that_is_read_gets_a_gradient(make: Factory, flow: Flow) -> None:
    fusion = make(16, 2, flow)
    rgb, aux = (x.requires_grad_() for x in maps())
    # A plain sum is constant after a batch norm: weigh the elements.
    fused = fusion(rgb, aux).fused
    (fused * torch.randn_like(fused)).sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # What stands before a batch norm may be shifted freely: its bias gets an exact or nearly exact zero.
        assert parameter.grad.any() or name.endswith("bias"), name
    assert rgb.grad is not None
    assert (aux.grad is not None) == fusion.reads_aux


@pytest.mark.parametrize("hw", [(5, 7), (1, 1), (1, 9)])
@every_flow
@every_fusion
def test_shapes_are_kept_at_odd_sizes(make: Factory, flow: Flow, hw: tuple[int, int]) -> None:
    for x in make(16, 2, flow)(*maps(*hw)):
        assert x.shape == (2, 16, *hw)
        assert x.isfinite().all()


@pytest.mark.parametrize("zeroed", [0, 1])
@every_flow
@every_fusion
def test_a_dead_stream_is_survived(make: Factory, flow: Flow, zeroed: int) -> None:
    streams = list(maps())
    streams[zeroed] = torch.zeros_like(streams[zeroed], requires_grad=True)
    fusion = make(16, 2, flow)
    out = fusion(*streams)
    assert all(x.isfinite().all() for x in out)
    sum(x.square().sum() for x in out).backward()
    assert all(parameter.grad.isfinite().all() for parameter in fusion.parameters())
    assert streams[zeroed].grad.isfinite().all()


@every_flow
@every_fusion
def test_state_travels(make: Factory, flow: Flow) -> None:
    fusion, other = make(16, 2, flow), make(16, 2, flow)
    fusion(*maps())  # moves the running statistics
    other.load_state_dict(fusion.state_dict())
    inputs = maps()
    for x, y in zip(fusion.eval()(*inputs), other.eval()(*inputs), strict=True):
        assert torch.equal(x, y)


@every_flow
@every_fusion
def test_flow_decides_what_goes_on(make: Factory, flow: Flow) -> None:
    fusion = make(16, 2, flow).eval()
    rgb, aux = maps()
    out = fusion(rgb, aux)
    if isinstance(fusion, Identity):
        assert out.rgb_next is rgb
        assert out.aux_next is aux
    elif flow == "fused":
        assert out.rgb_next is out.fused
        assert out.aux_next is out.fused
    else:
        assert not torch.equal(out.rgb_next, out.aux_next)
        assert not torch.equal(out.rgb_next, out.fused)


@pytest.mark.parametrize("stages", [(), (1,), (2,), (4,), (1, 3), (1, 2, 3, 4)], ids=str)
@every_flow
@every_fusion
def test_no_parameter_of_an_encoder_is_without_gradient(
    make: Factory, flow: Flow, stages: tuple[int, ...]
) -> None:
    variant = MIT_VARIANTS["nano"]
    fusions = [
        make(channels, heads, flow) if stage in stages else Identity()
        for stage, (channels, heads) in enumerate(zip(variant.channels, variant.num_heads, strict=True), 1)
    ]
    encoder = DualStreamEncoder(
        variant=variant, rgb_channels=3, aux_channels=2, fusions=fusions, drop_path_rate=0.0
    )
    maps = encoder(torch.randn(2, 3, 64, 64), torch.randn(2, 2, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == []
    reading = [stage for stage in stages if fusions[stage - 1].reads_aux]
    assert len(encoder.aux_stages) == max(reading, default=0)
