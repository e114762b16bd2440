"""The encoder: golden numbers, parameter counts, initial weights, layout."""

from __future__ import annotations

import math

import pytest
import torch
from golden import sin_filled, sin_input, summary
from torch import Tensor, nn

from raydet.models.backbones.dual import DualStreamEncoder, Init
from raydet.models.backbones.mit import (
    MIT_VARIANTS,
    Block,
    MiTStage,
    PatchEmbed,
    attend,
    draw_keep,
    drop_path_rates,
    mit_stages,
    num_chunks_of,
)
from raydet.models.fusion.cmx import CMX, FRM


def cmx_encoder(name: str, init: Init = "segformer") -> DualStreamEncoder:
    variant = MIT_VARIANTS[name]
    fusions = [
        CMX(channels=channels, num_heads=heads)
        for channels, heads in zip(variant.channels, variant.num_heads, strict=True)
    ]
    rgb_stages, aux_stages = (
        mit_stages(variant=variant, in_channels=channels, drop_path_rate=0.1) for channels in (3, 2)
    )
    return DualStreamEncoder(rgb_stages=rgb_stages, aux_stages=aux_stages, fusions=fusions, init=init)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("sr_ratio", "golden"),
    [
        (2, [1.955183095, 0.636004405, 0.017531616, 0.837157218]),
        (1, [2.422951898, 0.636103854, 0.018651243, 0.851706121]),
    ],
)
def test_block(sr_ratio: int, golden: list[float]) -> None:
    block = sin_filled(Block(channels=16, num_heads=2, sr_ratio=sr_ratio))
    assert summary(block(sin_input(2, 24, 16), (4, 6))) == pytest.approx(golden, abs=1e-8)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "shape", "hw", "golden"),
    [
        ((3, 8), 7, 4, (1, 3, 32, 40), (8, 10), [1.182603263, 0.881518851, 1.557205885, -0.516980419]),
        ((8, 16), 3, 2, (1, 8, 8, 10), (4, 5), [0.143065599, 0.854696858, 2.153871499, -2.112021541]),
    ],
)
def test_patch_embed(
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    shape: tuple[int, ...],
    hw: tuple[int, int],
    golden: list[float],
) -> None:
    embed = sin_filled(
        PatchEmbed(in_channels=channels[0], channels=channels[1], kernel=kernel, stride=stride)
    )
    tokens, grid = embed(sin_input(*shape))
    assert grid == hw
    assert summary(tokens) == pytest.approx(golden, abs=1e-8)


WHOLE_ENCODER_SUMS = {
    "b0": [-18.084625017, 22.251382707, 1.833383302, -0.084185029],
    "b1": [38.552779036, 6.711566060, -1.074841200, 1.569344632],
}
B0_MEAN_MAGNITUDES = [0.043902453, 0.326431625, 0.167559709, 0.019248509]


@pytest.mark.parametrize("name", WHOLE_ENCODER_SUMS)
def test_whole_encoder(name: str) -> None:
    encoder = sin_filled(cmx_encoder(name))
    maps = encoder(sin_input(1, 3, 64, 96), sin_input(1, 2, 64, 96, phase=1)).maps
    c1, c2, c3, c4 = encoder.channels
    assert [tuple(x.shape[1:]) for x in maps] == [(c1, 16, 24), (c2, 8, 12), (c3, 4, 6), (c4, 2, 3)]
    assert [x.sum().item() for x in maps] == pytest.approx(WHOLE_ENCODER_SUMS[name], abs=1e-6)
    if name == "b0":
        assert [x.abs().mean().item() for x in maps] == pytest.approx(B0_MEAN_MAGNITUDES, abs=1e-8)


def test_drop_path_rates_grow_linearly_over_the_whole_encoder() -> None:
    rates = drop_path_rates(MIT_VARIANTS["b2"], 0.1)
    assert rates == pytest.approx(torch.linspace(0, 0.1, 16, dtype=torch.float64).tolist(), abs=1e-15)
    assert rates[1] == pytest.approx(0.00667, abs=1e-5)
    stages = mit_stages(variant=MIT_VARIANTS["b2"], in_channels=3, drop_path_rate=0.1)
    assert [rate for stage in stages for rate in stage.drop_path_rates] == rates
    assert [len(stage.blocks) for stage in stages] == [len(stage.drop_path_rates) for stage in stages]


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    tokens = torch.ones(4000, 2, 3)
    keep = draw_keep(0.25, tokens)
    assert keep is not None
    assert keep.shape == (2, 4000, 1, 1)
    assert keep.dtype == tokens.dtype
    assert all(value in (0.0, pytest.approx(4 / 3)) for value in keep.unique().tolist())
    assert keep.mean(dim=(1, 2, 3)).tolist() == pytest.approx([1.0, 1.0], abs=0.05)
    assert not torch.equal(keep[0], keep[1])
    assert draw_keep(0.0, tokens) is None


def test_a_dropped_branch_leaves_the_sample_as_it_is() -> None:
    block, x = Block(channels=16, num_heads=2, sr_ratio=1), torch.randn(2, 24, 16)
    keep = torch.tensor([[0.0, 2.0], [0.0, 2.0]])[..., None, None]
    out = block(x, (4, 6), keep)
    assert torch.equal(out[0], x[0])
    after = x + 2 * block.attention(block.norm1(x), (4, 6))
    torch.testing.assert_close(out[1], (after + 2 * block.ffn(block.norm2(after), (4, 6)))[1])


def test_masks_are_drawn_branch_by_branch_before_the_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = MiTStage(variant=MIT_VARIANTS["b0"], stage=0, in_channels=3, drop_path_rates=[0.0, 0.5])
    seen: list[Tensor | None] = []
    for block in stage.blocks:
        monkeypatch.setattr(block, "forward", lambda x, hw, keep: seen.append(keep) or x)
    images = torch.rand(5, 3, 32, 32)
    torch.manual_seed(3)
    stage(images)
    torch.manual_seed(3)
    expected = [torch.empty(5, 1, 1).bernoulli_(0.5) / 0.5 for _ in range(2)]
    assert seen[0] is None
    assert torch.equal(seen[1], torch.stack(expected))
    stage.eval()(images)
    assert seen[2:] == [None, None]


@pytest.mark.parametrize(
    ("name", "per_stage"),
    [("b0", [159_232, 236_544, 837_120, 1_600_000]), ("b1", [629_760, 931_840, 3_312_640, 6_345_728])],
)
def test_block_parameters_per_stage(name: str, per_stage: list[int]) -> None:
    stages = mit_stages(variant=MIT_VARIANTS[name], in_channels=3, drop_path_rate=0.0)
    assert [count(stage.blocks) for stage in stages] == per_stage


@pytest.mark.parametrize(
    ("name", "golden"), [("b0", (2_507_272, 1_649_664)), ("b1", (10_019_848, 6_572_032))]
)
def test_fusion_parameters(name: str, golden: tuple[int, int]) -> None:
    with torch.device("meta"):
        fusions = cmx_encoder(name).fusions
    assert (sum(count(cmx.frm) for cmx in fusions), sum(count(cmx.ffm) for cmx in fusions)) == golden


ENCODER_PARAMETERS = {
    "b0": 10_794_152,
    "b1": 42_891_592,
    "b2": 64_981_320,
    "b4": 138_274_120,
    "b5": 179_474_760,
}


@pytest.mark.parametrize("name", ENCODER_PARAMETERS)
def test_encoder_parameters(name: str) -> None:
    with torch.device("meta"):
        assert count(cmx_encoder(name)) == ENCODER_PARAMETERS[name]


def test_norms_have_the_eps_of_the_published_weights() -> None:
    stage = MiTStage(variant=MIT_VARIANTS["nano"], stage=0, in_channels=3, drop_path_rates=[0.0])
    eps = {name: module.eps for name, module in stage.named_modules() if isinstance(module, nn.LayerNorm)}
    assert eps == {
        "patch_embed.norm": 1e-5,
        "blocks.0.norm1": 1e-6,
        "blocks.0.attention.reduce_norm": 1e-5,
        "blocks.0.norm2": 1e-6,
        "norm": 1e-6,
    }


def deviation(weight: Tensor) -> float:
    return weight.detach().std().item()


def test_segformer_init_sets_the_whole_encoder() -> None:
    encoder = cmx_encoder("b0", init="segformer")
    stage, frm = encoder.rgb_stages[3], encoder.fusions[3].frm
    assert deviation(stage.blocks[0].ffn.expand.weight) == pytest.approx(0.02, rel=0.05)
    assert deviation(frm.channel_gate[0].weight) == pytest.approx(0.02, rel=0.05)
    # fan_out counts per group: 9 for a depthwise 3x3 convolution, 9 C for the patch embedding
    assert deviation(stage.blocks[0].ffn.depthwise.weight) == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert deviation(stage.patch_embed.proj.weight) == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.05)
    assert not any(
        parameter.any() for name, parameter in encoder.named_parameters() if name.endswith(".bias")
    )


def test_seed_init_sets_ffm_only() -> None:
    encoder = cmx_encoder("b0", init="seed")
    stage, fusion = encoder.rgb_stages[3], encoder.fusions[3]
    # PyTorch's default: uniform within 1 / sqrt(fan_in), deviation 1 / sqrt(3 fan_in), biases too
    assert deviation(stage.blocks[0].ffn.expand.weight) == pytest.approx(1 / math.sqrt(3 * 256), rel=0.05)
    assert deviation(fusion.frm.channel_gate[0].weight) == pytest.approx(1 / math.sqrt(3 * 1024), rel=0.05)
    assert bool(stage.blocks[0].ffn.expand.bias.any())
    assert deviation(fusion.ffm.cross_path.project1.weight) == pytest.approx(0.02, rel=0.05)
    assert not fusion.ffm.cross_path.project1.bias.any()


def test_maps_stay_channels_last() -> None:
    stages = mit_stages(variant=MIT_VARIANTS["nano"], in_channels=3, drop_path_rate=0.0)
    x = torch.rand(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    for stage in stages:
        x = stage(x)
        assert x.is_contiguous(memory_format=torch.channels_last)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in FRM(128)(x, x))


def test_one_image_keeps_true_channels_last_strides() -> None:
    # A dimension of length 1 may have any stride; convolutions are slow where it is not this one.
    stage = MiTStage(variant=MIT_VARIANTS["nano"], stage=0, in_channels=3, drop_path_rates=[0.0])
    seen: dict[str, tuple[int, ...]] = {}
    depthwise = stage.blocks[0].ffn.depthwise
    depthwise.register_forward_hook(
        lambda _, inputs, out: seen.update(inputs=inputs[0].stride(), out=out.stride())
    )
    out = stage(torch.rand(1, 3, 64, 96).contiguous(memory_format=torch.channels_last))
    assert seen == {"inputs": (16 * 24 * 64, 1, 24 * 64, 64), "out": (16 * 24 * 64, 1, 24 * 64, 64)}
    assert out.stride() == (16 * 24 * 16, 1, 24 * 16, 16)


@pytest.mark.parametrize("num_chunks", [2, 3])
def test_attention_in_chunks_is_attention(num_chunks: int) -> None:
    q = torch.randn(2, 24, 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 6, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    whole, cut = attend(q, k, v), attend(q, k, v, num_chunks=num_chunks)
    torch.testing.assert_close(cut, whole, atol=1e-12, rtol=0)
    weight = torch.randn_like(whole)
    for x, y in zip(
        torch.autograd.grad((whole * weight).sum(), (q, k, v)),
        torch.autograd.grad((cut * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


def test_queries_are_split_so_that_every_thread_has_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    expected = {(1, 64, 1): 8, (4, 64, 1): 2, (1, 64, 5): 2, (4, 64, 8): 1, (1, 7, 1): 7, (1, 11, 1): 1}
    assert {shape: num_chunks_of(torch.empty(*shape, 4)) for shape in expected} == expected


@pytest.mark.bf16
def test_the_residual_stream_stays_fp32_under_autocast() -> None:
    stages = mit_stages(variant=MIT_VARIANTS["nano"], in_channels=3, drop_path_rate=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, hw = stages[0].patch_embed(torch.rand(2, 3, 64, 96))
        assert tokens.dtype == torch.float32
        assert stages[0].blocks[0](tokens, hw).dtype == torch.float32
