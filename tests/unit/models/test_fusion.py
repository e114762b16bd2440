"""The fusions: golden numbers, closed forms, parameter counts."""

from __future__ import annotations

import pytest
import torch
from golden import sin_filled, sin_input, summary
from torch import Tensor, nn

from raydet.models.fusion.basic import Add, Concat, Identity, LateConcat
from raydet.models.fusion.cmx import CMX, FFM, FRM, CrossAttention
from raydet.models.fusion.cross_attention import CrossAttentionFusion, CrossModalAttention
from raydet.models.fusion.cssa import CSSA, ChannelWeights
from raydet.models.fusion.gaff import GAFF, InterModalityGates
from raydet.models.init import init_segformer


def two_maps(channels: int) -> tuple[Tensor, Tensor]:
    return sin_input(2, channels, 4, 5), sin_input(2, channels, 4, 5, phase=1)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def zero_weights(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


# --- FRM and FFM


def test_frm() -> None:
    out1, out2 = sin_filled(FRM(8))(*two_maps(8))
    assert summary(out1) == pytest.approx([1.217980553, 0.855005763, 0.421063683, -1.147462544], abs=1e-8)
    assert summary(out2) == pytest.approx([-0.001230902, 0.856644198, 0.841470985, -0.832706669], abs=1e-8)


def test_frm_without_weights_adds_half_of_the_other_stream() -> None:
    frm = FRM(8).double()
    zero_weights(frm)
    x1, x2 = two_maps(8)
    out1, out2 = frm(x1, x2)
    assert torch.equal(out1, x1 + 0.5 * x2)
    assert torch.equal(out2, x2 + 0.5 * x1)


@pytest.mark.parametrize("channels", [8, 64])
def test_frm_and_ffm_parameters(channels: int) -> None:
    assert count(FRM(channels)) == 26 * channels**2 + 9 * channels + 2
    assert count(FFM(channels=channels, num_heads=2)) == 17 * channels**2 + 26 * channels


CROSS_ATTENTION = ([4.178471599, 0.418180785], [0.751801736, 0.449312967])


def cross_attended(attention: CrossAttention) -> list[list[float]]:
    outputs = attention(sin_input(2, 20, 16), sin_input(2, 20, 16, phase=1))
    return [summary(v)[:2] for v in outputs]


def test_cross_attention() -> None:
    v1, v2 = cross_attended(sin_filled(CrossAttention(channels=16, num_heads=2)))
    assert v1 == pytest.approx(CROSS_ATTENTION[0], abs=1e-8)
    assert v2 == pytest.approx(CROSS_ATTENTION[1], abs=1e-8)


def test_the_context_is_a_softmax_over_the_keys_channels() -> None:
    attention = sin_filled(CrossAttention(channels=16, num_heads=2))
    context = attention.context(attention.key_value1, sin_input(2, 20, 16))
    assert context.shape == (2, 2, 8, 8)
    torch.testing.assert_close(context.sum(dim=-2), torch.ones(2, 2, 8, dtype=torch.float64))


def test_a_softmax_over_the_other_axis_changes_the_golden_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = sin_filled(CrossAttention(channels=16, num_heads=2))
    softmax = Tensor.softmax
    monkeypatch.setattr(Tensor, "softmax", lambda self, dim: softmax(self, dim=-1))
    v1, _ = cross_attended(attention)
    assert v1 != pytest.approx(CROSS_ATTENTION[0], abs=1e-4)


def test_ffm() -> None:
    fused = sin_filled(FFM(channels=16, num_heads=2))(*two_maps(16))
    assert summary(fused) == pytest.approx([0.848734339, 0.057586706, 0.009489314, 0.024472678], abs=1e-8)


def test_cmx_passes_on_the_maps_of_the_flow() -> None:
    rgb, aux = two_maps(16)
    rectified = sin_filled(CMX(channels=16, num_heads=2, flow="rectified"))
    fused = sin_filled(CMX(channels=16, num_heads=2, flow="fused"))
    rgb_rectified, aux_rectified = rectified.frm(rgb, aux)
    out = rectified(rgb, aux)
    assert torch.equal(out.rgb_next, rgb_rectified)
    assert torch.equal(out.aux_next, aux_rectified)
    assert torch.equal(out.fused, rectified.ffm(rgb_rectified, aux_rectified))
    for x in fused(rgb, aux).maps:
        assert torch.equal(x, out.fused)


# --- GAFF

GAFF_GOLDEN = {
    (False, False): [0.787961580, 0.131225604, -0.115610154, -0.168404482],
    (False, True): [0.633637874, 0.006692901],
    (True, False): [0.603565873, 0.131152026],
    (True, True): [0.635434927, 0.006686865],
}


@pytest.mark.parametrize(("inter_shared", "merge_bottleneck"), GAFF_GOLDEN)
def test_gaff(inter_shared: bool, merge_bottleneck: bool) -> None:
    gaff = sin_filled(GAFF(channels=8, inter_shared=inter_shared, merge_bottleneck=merge_bottleneck))
    golden = GAFF_GOLDEN[inter_shared, merge_bottleneck]
    assert summary(gaff(*two_maps(8)).fused)[: len(golden)] == pytest.approx(golden, abs=1e-8)


@pytest.mark.parametrize("inter_shared", [False, True])
@pytest.mark.parametrize(
    ("channels", "se_reduction", "merge_bottleneck", "golden"),
    [
        (8, 4, False, 464),
        (8, 4, True, 544),
        (64, 4, False, 28_800),
        (128, 4, False, 114_944),
        (320, 4, False, 717_440),
        (512, 4, False, 1_836_032),
        (320, 8, True, 769_280),
    ],
)
def test_gaff_parameters(
    channels: int, se_reduction: int, merge_bottleneck: bool, inter_shared: bool, golden: int
) -> None:
    gaff = GAFF(
        channels=channels,
        se_reduction=se_reduction,
        inter_shared=inter_shared,
        merge_bottleneck=merge_bottleneck,
    )
    assert count(gaff) == golden


@pytest.mark.parametrize(
    ("se_reduction", "merge_bottleneck", "detector_total"),
    [(4, False, 62_712_161), (8, False, 62_519_649), (4, True, 63_099_233), (8, True, 62_906_721)],
)
def test_gaff_totals_of_the_published_runs(
    se_reduction: int, merge_bottleneck: bool, detector_total: int
) -> None:
    # Those runs built both fusions at every stage, whichever was used.
    cmx_detector = 60_014_945
    blocks = [
        GAFF(channels=channels, se_reduction=se_reduction, merge_bottleneck=merge_bottleneck)
        for channels in (64, 128, 320, 512)
    ]
    assert cmx_detector + sum(map(count, blocks)) == detector_total


def test_shared_gates_are_two_separate_convolutions_stacked() -> None:
    separate = sin_filled(GAFF(channels=8, inter_shared=False))
    shared = sin_filled(GAFF(channels=8, inter_shared=True))
    with torch.no_grad():
        shared.inter.convs[0].weight.copy_(torch.cat([conv.weight for conv in separate.inter.convs]))
    for x, y in zip(separate(*two_maps(8)).maps, shared(*two_maps(8)).maps, strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("init", ["segformer", "seed"])
def test_both_forms_of_the_gates_start_alike(init: str) -> None:
    """Equivalent cells must be drawn from one distribution: with equal seeds they are the same function."""
    weights = []
    for inter_shared in (False, True):
        torch.manual_seed(0)
        gaff = GAFF(channels=8, inter_shared=inter_shared)
        if init == "segformer":
            gaff.inter.apply(init_segformer)
        weights.append(torch.cat([conv.weight for conv in gaff.inter.convs]))
    assert torch.equal(*weights)


def test_gates_without_weights_are_one_half() -> None:
    gates = InterModalityGates(channels=8, shared=False).double()
    zero_weights(gates)
    for gate in gates(*two_maps(8)):
        assert torch.equal(gate, torch.full_like(gate, 0.5))


def test_gaff_passes_on_the_guided_maps() -> None:
    gaff = sin_filled(GAFF(channels=8, flow="rectified"))
    zero_weights(gaff.inter)
    rgb, aux = two_maps(8)
    out = gaff(rgb, aux)
    torch.testing.assert_close(out.rgb_next, gaff.se_rgb(rgb) + 0.5 * aux)
    torch.testing.assert_close(out.aux_next, gaff.se_aux(aux) + 0.5 * rgb)


# --- identity


def test_identity_passes_both_streams_on() -> None:
    rgb, aux = two_maps(8)
    out = Identity()(rgb, aux)
    assert out.fused is rgb
    assert out.rgb_next is rgb
    assert out.aux_next is aux


# --- CSSA


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, [2.817688856, 0.211694650, 0.172633557, -0.231276811]),
        (0.7, [1.489672638, 0.204151964, 0.168454926, -0.216997849]),  # all switch
        (0.3, [1.489672638, 0.204151964, 0.168454926, -0.216997849]),  # none switches
    ],
)
@pytest.mark.parametrize("straight_through", [False, True])
def test_cssa(threshold: float, expected: list[float], straight_through: bool) -> None:
    cssa = sin_filled(CSSA(channels=8, threshold=threshold, straight_through=straight_through))
    assert summary(cssa(*two_maps(8)).fused) == pytest.approx(expected, abs=1e-8)


def test_cssa_with_thresholds_0_and_1_is_the_same_function() -> None:
    x1, x2 = two_maps(8)
    none, all_ = (sin_filled(CSSA(channels=8, threshold=threshold))(x1, x2).fused for threshold in (0.0, 1.0))
    assert torch.equal(none, all_)


def test_cssa_is_symmetric() -> None:
    cssa = sin_filled(CSSA(channels=8))
    x1, x2 = two_maps(8)
    assert torch.equal(cssa(x1, x2).fused, cssa(x2, x1).fused)


def test_cssa_of_equal_inputs_is_spatial_attention() -> None:
    x, _ = two_maps(8)
    attention = x.mean(dim=1, keepdim=True).sigmoid() * x.amax(dim=1, keepdim=True).sigmoid()
    torch.testing.assert_close(sin_filled(CSSA(channels=8))(x, x).fused, x * attention)


@pytest.mark.parametrize("channels", [8, 320])
def test_cssa_parameters(channels: int) -> None:
    assert count(CSSA(channels=channels, kernel_size=3)) == 6
    assert count(CSSA(channels=channels, kernel_size=5)) == 10
    assert count(CSSA(channels=channels, kernel_size=3, variant="conv7")) == 6 * channels + 99


def test_cssa_trains_its_channel_weights_only_straight_through() -> None:
    for straight_through in (False, True):
        cssa = CSSA(channels=8, straight_through=straight_through).double()
        x1, x2 = two_maps(8)
        fused = cssa(x1.requires_grad_(), x2).fused
        fused.sum().backward()
        assert (cssa.weights_rgb.weight.grad is not None) == straight_through
        assert (cssa.weights_aux.weight.grad is not None) == straight_through


def test_channel_weights_are_a_convolution_over_channels() -> None:
    """As in the published code."""
    weights = ChannelWeights(channels=16, kernel_size=5, is_shared=True)
    x = torch.randn(2, 16, 3, 4)
    expected = nn.functional.conv1d(x.mean(dim=(2, 3))[:, None], weights.weight[None], padding=2).sigmoid()
    torch.testing.assert_close(weights(x)[..., 0, 0], expected[:, 0])


# --- basic fusions and cross-attention


def test_add_and_concat() -> None:
    x1, x2 = two_maps(8)
    assert torch.equal(Add()(x1, x2).fused, x1 + x2)
    concat = Concat(channels=8).double()
    torch.testing.assert_close(concat(x1, x2).fused, concat.merge(torch.cat((x1, x2), dim=1)))
    assert count(concat) == 2 * 8**2 + 8
    assert torch.equal(LateConcat()(x1, x2).fused, torch.cat((x1, x2), dim=1))


@pytest.mark.parametrize("sr_ratio", [1, 2, 4])
def test_cross_attention_parameters(sr_ratio: int) -> None:
    fusion = CrossAttentionFusion(channels=16, num_heads=2, sr_ratio=sr_ratio)
    reduction = 2 * (16**2 * sr_ratio**2 + 3 * 16) if sr_ratio > 1 else 0
    assert count(fusion) == 10 * 16**2 + 13 * 16 + reduction


def test_cross_attention_equals_pytorchs() -> None:
    attention = CrossModalAttention(channels=16, num_heads=2, sr_ratio=1).double()
    theirs = nn.MultiheadAttention(16, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((attention.query.weight, attention.key_value.weight)))
        theirs.in_proj_bias.copy_(torch.cat((attention.query.bias, attention.key_value.bias)))
        theirs.out_proj.weight.copy_(attention.proj.weight)
        theirs.out_proj.bias.copy_(attention.proj.bias)
    own, other = sin_input(2, 20, 16), sin_input(2, 20, 16, phase=1)
    expected, _ = theirs(own, other, other)
    torch.testing.assert_close(attention(own, other, (4, 5)), expected)


def test_the_last_row_and_column_of_the_other_grid_are_read() -> None:
    attention = CrossModalAttention(channels=16, num_heads=2, sr_ratio=4).double()
    own, other = sin_input(2, 35, 16), sin_input(2, 35, 16, phase=1)
    before = attention(own, other, (5, 7))
    other[:, -1] += 1.0
    assert not torch.equal(attention(own, other, (5, 7)), before)
