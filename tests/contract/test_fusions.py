"""The contract of every fusion, under either flow, alone and inside an encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor

from raydet.models.backbones.dual import DualStreamEncoder, num_aux_stages
from raydet.models.backbones.mit import MIT_VARIANTS, mit_stages
from raydet.models.fusion.base import Flow, Fusion, FusionOutput
from raydet.models.fusion.basic import Add, Concat, Identity, LateConcat
from raydet.models.fusion.cmx import CMX
from raydet.models.fusion.cross_attention import CrossAttentionFusion
from raydet.models.fusion.cssa import CSSA
from raydet.models.fusion.gaff import GAFF
from raydet.models.fusion.gated import Gated
from raydet.models.fusion.guided import Guided
from raydet.parallel.recompute import recompute_activations

Factory = Callable[[int, int, Flow], Fusion]

FUSIONS: dict[str, Factory] = {
    "cmx": lambda channels, heads, flow: CMX(channels=channels, num_heads=heads, flow=flow),
    "gaff": lambda channels, heads, flow: GAFF(channels=channels, flow=flow),
    "gaff_shared": lambda channels, heads, flow: GAFF(channels=channels, inter_shared=True, flow=flow),
    "gaff_bottleneck": lambda channels, heads, flow: GAFF(
        channels=channels, merge_bottleneck=True, flow=flow
    ),
    # Another width is allowed if only the detector reads the fused map.
    "gaff_wider": lambda channels, heads, flow: GAFF(
        channels=channels,
        out_channels=channels + (8 if flow == "rectified" else 0),
        merge_bottleneck=True,
        flow=flow,
    ),
    "gaff_lite": lambda channels, heads, flow: GAFF(channels=channels, se_reduction=None, flow=flow),
    "gaff_partner_weights": lambda channels, heads, flow: GAFF(
        channels=channels, merge_weights="partner", flow=flow
    ),
    "gaff_both_weights": lambda channels, heads, flow: GAFF(
        channels=channels, merge_weights="both", flow=flow
    ),
    "gaff_scales": lambda channels, heads, flow: GAFF(
        channels=channels, inter_scales=3, inter_shared=True, flow=flow
    ),
    "gaff_gated": lambda channels, heads, flow: Gated(
        GAFF(channels=channels, flow=flow), channels=channels, flow=flow
    ),
    "gaff_guided_intra": lambda channels, heads, flow: Guided(
        GAFF(channels=channels, flow=flow), channels=channels, has_choice=False
    ),
    "gaff_guided": lambda channels, heads, flow: Guided(
        Gated(GAFF(channels=channels, flow=flow), channels=channels, flow=flow),
        channels=channels,
        has_choice=True,
    ),
    "add": lambda channels, heads, flow: Add(flow=flow),
    "concat": lambda channels, heads, flow: Concat(channels=channels, flow=flow),
    "late_concat": lambda channels, heads, flow: LateConcat(),
    "cssa": lambda channels, heads, flow: CSSA(channels=channels, flow=flow),
    "cssa_straight_through": lambda channels, heads, flow: CSSA(
        channels=channels, straight_through=True, flow=flow
    ),
    "cssa_conv7": lambda channels, heads, flow: CSSA(
        channels=channels, kernel_size=None, straight_through=True, variant="conv7", flow=flow
    ),
    "cross_attention": lambda channels, heads, flow: CrossAttentionFusion(
        channels=channels, num_heads=heads, sr_ratio=2, flow=flow
    ),
    "identity": lambda channels, heads, flow: Identity(),
}
FLOWS: tuple[Flow, ...] = get_args(Flow)

every_fusion = pytest.mark.parametrize("make", FUSIONS.values(), ids=FUSIONS)
every_flow = pytest.mark.parametrize("flow", FLOWS)


def maps(height: int = 8, width: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 16, height, width), torch.randn(2, 16, height, width)


def tensors(out: FusionOutput) -> list[Tensor]:
    """The maps, and the inputs of the fusion's own losses."""
    return [*out.maps, *(x for x in out.guides or () if x is not None)]


@every_flow
@every_fusion
def test_every_parameter_and_every_input_that_is_read_gets_a_gradient(make: Factory, flow: Flow) -> None:
    fusion = make(16, 2, flow)
    rgb, aux = (x.requires_grad_() for x in maps())
    # A plain sum is constant after a batch norm: weigh the elements.
    fused = fusion(rgb, aux).fused
    (fused * torch.randn_like(fused)).sum().backward()
    for name, parameter in fusion.named_parameters():
        if not parameter.requires_grad:
            assert isinstance(fusion, CSSA), name  # as published
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias before a batch norm has no effect: its gradient is zero, or nearly.
        assert parameter.grad.any() or name.endswith("bias"), name
    assert rgb.grad is not None
    assert (aux.grad is not None) == fusion.reads_aux


@pytest.mark.parametrize("hw", [(5, 7), (1, 1), (1, 9)])
@every_flow
@every_fusion
def test_shapes_are_kept_at_odd_sizes(make: Factory, flow: Flow, hw: tuple[int, int]) -> None:
    fusion = make(16, 2, flow)
    out = fusion(*maps(*hw))
    assert out.fused.shape == (2, fusion.fused_channels(16), *hw)
    assert out.rgb_next.shape == out.aux_next.shape == (2, 16, *hw)
    assert all(x.isfinite().all() for x in tensors(out))


@pytest.mark.parametrize("zeroed", [0, 1])
@every_flow
@every_fusion
def test_a_stream_of_zeros_is_supported(make: Factory, flow: Flow, zeroed: int) -> None:
    streams = list(maps())
    streams[zeroed] = torch.zeros_like(streams[zeroed], requires_grad=True)
    fusion = make(16, 2, flow)
    out = fusion(*streams)
    assert all(x.isfinite().all() for x in tensors(out))
    sum(x.square().sum() for x in tensors(out)).backward()
    trained = [parameter for parameter in fusion.parameters() if parameter.requires_grad]
    assert all(parameter.grad.isfinite().all() for parameter in trained)
    assert streams[zeroed].grad.isfinite().all()


@every_flow
@every_fusion
def test_state_dict_round_trip(make: Factory, flow: Flow) -> None:
    fusion, other = make(16, 2, flow), make(16, 2, flow)
    fusion(*maps())  # moves the running statistics
    other.load_state_dict(fusion.state_dict())
    inputs = maps()
    for x, y in zip(tensors(fusion.eval()(*inputs)), tensors(other.eval()(*inputs)), strict=True):
        assert torch.equal(x, y)


@every_flow
@every_fusion
def test_flow_decides_what_enters_the_next_stage(make: Factory, flow: Flow) -> None:
    fusion = make(16, 2, flow).eval()
    rgb, aux = maps()
    out = fusion(rgb, aux)
    if isinstance(fusion, Identity | LateConcat):
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
    rgb_stages, aux_stages = (
        mit_stages(variant=variant, in_channels=channels, drop_path_rate=0.0, num_stages=num_stages)
        for channels, num_stages in ((3, 4), (2, num_aux_stages(fusions)))
    )
    encoder = DualStreamEncoder(rgb_stages=rgb_stages, aux_stages=aux_stages, fusions=fusions)
    maps = encoder(torch.randn(2, 3, 64, 64), torch.randn(2, 2, 64, 64)).maps
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    without = [name for name, parameter in trained.items() if parameter.grad is None]
    assert without == []
    reading = [stage for stage in stages if fusions[stage - 1].reads_aux]
    assert len(encoder.aux_stages) == max(reading, default=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["b0", "b1"])
@every_fusion
def test_recomputing_changes_nothing_in_the_published_sizes(
    make: Factory, variant: str, precision: torch.dtype
) -> None:
    """Forward and backward through all four stages in either precision: all gradients exist and are equal."""
    sizes = MIT_VARIANTS[variant]

    def gradients(mode: Literal["none", "block"]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        fusions = [
            make(channels, heads, "rectified")
            for channels, heads in zip(sizes.channels, sizes.num_heads, strict=True)
        ]
        recompute_activations([fusion for fusion in fusions if any(True for _ in fusion.parameters())], mode)
        streams = [
            [
                torch.randn(1, channels, side, side + 1)
                for channels, side in zip(sizes.channels, (8, 5, 3, 2), strict=True)
            ]
            for _ in range(2)
        ]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            outputs = [fusion(rgb, aux) for fusion, rgb, aux in zip(fusions, *streams, strict=True)]
        results = [x for out in outputs for x in (out.fused, *tensors(out)[3:])]
        trained = [
            parameter for fusion in fusions for parameter in fusion.parameters() if parameter.requires_grad
        ]
        if trained:
            sum((x.float() * torch.randn(x.shape)).sum() for x in results).backward()
        return {str(number): parameter.grad for number, parameter in enumerate(trained)}

    plain, recomputed = gradients("none"), gradients("block")
    for name, gradient in plain.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert torch.equal(gradient, recomputed[name]), name
