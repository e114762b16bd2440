"""Backbones from timm: the contract of MiT, and the maps that timm itself computes."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, Literal

import pytest
import timm
import torch
from timm.layers import Format
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn

from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError
from raydet.models.backbones.dual import DualStreamEncoder
from raydet.models.backbones.mit import MIT_VARIANTS
from raydet.models.backbones.timm import DropPath, timm_sizes, timm_stages
from raydet.models.build import build_model, describe_parameters
from raydet.parallel.recompute import recompute_activations
from raydet.recipes import recipe

SMALL = ("test_resnet", "test_convnext", "test_efficientnet")
PUBLISHED = ("resnet50", "convnext_tiny", "tf_efficientnet_lite0")
RUN_BY_TIMM_AS_A_WHOLE = ("tf_efficientnet_lite0", "mobilenetv3_small_050", "cspnext_s", "test_mambaout")
"""Their layers are found by watching timm run them; the maps of the last one are NHWC."""
OTHERS = (
    "densenet121",
    "darknet17",
    "efficientnet_b0",
    "efficientnetv2_rw_t",
    "fbnetv3_b",
    "hgnet_tiny",
    "mobilenetv4_conv_small",
    "mobilevit_s",
    "pvt_v2_b0",
    "regnety_002",
    "repvit_m0_9",
    "vgg11",
)
ALONE = {"model.fusion_stages": [], "model.elsewhere": {"kind": "identity"}}


def experiment(name: str, *, fusion: str = "add", rate: float = 0.0, **overrides: Any) -> Experiment:
    changes = {
        "model.backbone": {"kind": "timm", "name": name, "drop_path_rate": rate},
        "model.fusion.kind": fusion,
        "model.elsewhere": {"kind": "identity"},
        **overrides,
    }
    return apply_overrides(recipe("demo"), changes)


def encoder(name: str, **arguments: Any) -> DualStreamEncoder:
    return build_model(experiment(name, **arguments)).encoder


def images(height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, height, width), torch.randn(2, 2, height, width)


def weighed(maps: list[Tensor]) -> Tensor:
    """A weighted sum, since a plain sum is constant after a batch norm."""
    return torch.stack([(x * torch.linspace(0, 1, x.numel()).view_as(x)).mean() for x in maps]).sum()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def leaves(module: nn.Module) -> list[str]:
    """The innermost modules with their settings; stochastic depth is our own."""
    found = [repr(m) for m in module.modules() if not any(True for _ in m.children())]
    return [text for text in found if not text.startswith("DropPath")]


@pytest.mark.parametrize(
    "name",
    [*SMALL, *PUBLISHED, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in OTHERS)],
)
def test_published_channels_and_strides_match(name: str) -> None:
    with torch.device("meta"):
        backbone = encoder(name).eval()
        maps = backbone(*images(64, 96)).maps
    assert tuple(x.shape[1] for x in maps) == backbone.channels
    assert tuple(64 // x.shape[2] for x in maps) == backbone.strides
    assert tuple(96 // x.shape[3] for x in maps) == backbone.strides


@pytest.mark.parametrize(
    "name",
    [
        *SMALL,
        *RUN_BY_TIMM_AS_A_WHOLE,
        "test_byobnet",
        "resnet18",
        "regnetx_002",
        *(pytest.param(n, marks=pytest.mark.exhaustive) for n in OTHERS),
    ],
)
@pytest.mark.parametrize("hw", [(64, 96), (72, 104)])
def test_stages_equal_timm(name: str, hw: tuple[int, int]) -> None:
    """To the last bit, with as many parameters, and with the same layers: class, eps, momentum, activation."""
    theirs = timm.create_model(name, features_only=True).eval()
    ours = encoder(name, **ALONE).eval()
    sources, targets = theirs.state_dict(), ours.state_dict()
    for target, source in zip(targets, sources, strict=True):
        inner = target.split(".layers.")[1]
        assert inner.replace("_", ".") == source.removeprefix("model.").replace("_", ".")
        targets[target].copy_(sources[source])
    built = leaves(ours.rgb_stages)
    assert built == leaves(theirs)[: len(built)]  # timm leaves what was the classifier's pooling behind
    rgb = torch.randn(2, 3, *hw).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = theirs(rgb)
        if getattr(theirs, "output_fmt", None) == Format.NHWC:
            features = [x.permute(0, 3, 1, 2) for x in features]
        features = {x.shape[2]: x for x in features}
        maps = ours(rgb, torch.zeros(2, 0, *hw)).maps
    assert len(maps) == 4
    for x in maps:
        assert torch.equal(x, features[x.shape[2]])


@pytest.mark.parametrize("name", SMALL)
def test_the_fused_map_enters_the_next_stage_of_both_streams(name: str) -> None:
    backbone = encoder(name, **{"model.flow": "fused"}).eval()
    rgb, aux = images(64, 64)
    maps, x, y = backbone(rgb, aux).maps, rgb, aux
    for fused, ours, others in zip(maps, backbone.rgb_stages, backbone.aux_stages, strict=True):
        x = y = ours(x) + others(y)
        torch.testing.assert_close(x, fused)


@pytest.mark.parametrize("fusion", ["add", "cmx", "gaff", "cross_attention"])
@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str, fusion: str) -> None:
    backbone = encoder(name, fusion=fusion)
    weighed(backbone(*images(64, 64)).maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("stages", [[], [2], [1, 3]])
@pytest.mark.parametrize("name", SMALL)
def test_stages_that_no_fusion_reads_are_not_built(name: str, stages: list[int]) -> None:
    backbone = encoder(name, **{"model.fusion_stages": stages})
    assert len(backbone.aux_stages) == max(stages, default=0)
    weighed(backbone(*images(64, 64)).maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("hw", [(72, 104), (33, 47), (32, 32)])
def test_odd_sizes_run(name: str, hw: tuple[int, int]) -> None:
    with torch.no_grad():
        maps = encoder(name).eval()(*images(*hw)).maps
    assert [x.shape[1] for x in maps] == list(timm_sizes(name).channels)
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize(
    "modalities",
    [["thermal"], ["thermal", "event"], ["rgb"], ["rgb", "thermal"], ["rgb", "thermal", "event"]],
    ids=len,
)
@pytest.mark.parametrize("name", SMALL)
def test_any_number_of_channels(name: str, modalities: list[str]) -> None:
    backbone = encoder(name, **ALONE, **{"model.rgb_modalities": modalities})
    channels = sum({"rgb": 3}.get(modality, 1) for modality in modalities)
    assert len(backbone(torch.randn(2, channels, 64, 64), torch.zeros(2, 0, 64, 64)).maps) == 4


@pytest.mark.parametrize("mode", ["block", "selective"])
@pytest.mark.parametrize("name", [*SMALL, "test_byobnet"])
def test_recomputing_changes_nothing(name: str, mode: Literal["block", "selective"]) -> None:
    detector = build_model(experiment(name, rate=0.5))
    plain, again = detector, copy.deepcopy(detector)
    recompute_activations(again.units().blocks, mode)
    inputs, results = images(64, 64), []
    for built in (plain, again):
        torch.manual_seed(3)  # both drop the same branches
        maps = built.encoder(*inputs).maps
        weighed(maps).backward()
        after = torch.rand(3)
        results.append([*maps, *(p.grad for p in built.encoder.parameters()), *built.buffers(), after])
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


def test_drop_path_equals_timm() -> None:
    ours, theirs = DropPath(0.25, scale_by_keep=True), timm.layers.DropPath(0.25)
    x, dropped = torch.randn(64, 3, 2, 2), []
    for module in (ours, theirs):
        torch.manual_seed(1)
        dropped.append(module(x))
    assert torch.equal(*dropped)
    assert torch.equal(ours.eval()(x), x)
    rates = [m.p for m in timm_stages(name="convnext_atto", in_channels=3, drop_path_rate=0.3).modules()
             if isinstance(m, DropPath)]  # fmt: skip
    assert rates == pytest.approx([0.3 * block / 11 for block in range(1, 12)])


@pytest.mark.parametrize("name", SMALL)
def test_state_dict_round_trip(name: str) -> None:
    backbone, other, inputs = encoder(name), encoder(name).eval(), images(64, 64)
    backbone(*inputs)  # moves the running statistics
    other.load_state_dict(backbone.eval().state_dict())
    with torch.no_grad():
        for x, y in zip(backbone(*inputs).maps, other(*inputs).maps, strict=True):
            assert torch.equal(x, y)


def test_one_seed_gives_one_set_of_weights() -> None:
    built = []
    for _ in range(2):
        timm_sizes.cache_clear()  # the check of a model must not draw random numbers
        torch.manual_seed(7)
        built.append(encoder("test_convnext").state_dict())
        built[-1]["next"] = torch.rand(1)
        timm_sizes("test_convnext")
    assert all(torch.equal(built[0][key], built[1][key]) for key in built[0])


# --- parameters


def bottlenecks(before: int, inner: int, depth: int) -> int:
    """Three convolutions without bias, each with a batch norm; the first block has a shortcut with one, too."""
    after = 4 * inner
    shortcut = before * after + 2 * after
    first = before * inner + 9 * inner**2 + inner * after + 2 * (inner + inner + after)
    return shortcut + first + (depth - 1) * (first + (after - before) * inner)


RESNET50 = (
    3 * 64 * 49
    + 2 * 64
    + sum(
        bottlenecks(before, inner, depth)
        for before, inner, depth in ((64, 64, 3), (256, 128, 4), (512, 256, 6), (1024, 512, 3))
    )
)
WIDTHS = (96, 192, 384, 768)
CONVNEXT_TINY = (
    (3 * 16 + 1 + 2) * 96  # the stem and its norm
    # depthwise 7x7, norm, two linear layers, scale
    + sum(
        depth * (50 * width + 2 * width + 8 * width**2 + 5 * width + width)
        for depth, width in zip((3, 3, 9, 3), WIDTHS, strict=True)
    )
    + sum(2 * before + 4 * before * after + after for before, after in pairwise(WIDTHS))
)


@pytest.mark.parametrize(
    ("name", "formula", "published", "first"),
    [
        # the classifiers have 25,557,032 and 28,589,128, with a linear layer, and the norm before it
        ("resnet50", RESNET50, 25_557_032 - 2048 * 1000 - 1000, 64 * 49),
        ("convnext_tiny", CONVNEXT_TINY, 28_589_128 - 768 * 1000 - 1000 - 2 * 768, 96 * 16),
    ],
)
def test_parameters(name: str, formula: int, published: int, first: int) -> None:
    counts = describe_parameters(experiment(name))
    assert counts["trunk_rgb"] == formula == published
    assert counts["trunk_aux"] == published - first  # one channel less
    assert counts["total"] == sum(value for part, value in counts.items() if part != "total")


def test_parameters_of_efficientnet_lite0() -> None:
    head = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000  # a convolution with its norm, and the classifier
    counts = describe_parameters(experiment("tf_efficientnet_lite0"))
    assert counts["trunk_rgb"] == 4_652_008 - head
    assert counts["trunk_aux"] == counts["trunk_rgb"] - 32 * 9  # one channel less


def test_attention_heads_follow_mits_rule() -> None:
    for name in ("b1", "b2", "b5"):
        variant = MIT_VARIANTS[name]
        assert variant.num_heads == tuple(channels // 64 for channels in variant.channels)
    assert timm_sizes("resnet50").num_heads == (4, 8, 16, 32)
    assert timm_sizes("convnext_tiny").num_heads == (1, 3, 6, 12)
    # 32, 48, 192, 96: at least one head
    assert timm_sizes("test_resnet").num_heads == (1, 1, 3, 1)


# --- refusals


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("resnet5o", 0.0, "has no model 'resnet5o'; did you mean resnet50?"),
        ("resnet50.nonsense", 0.0, "cannot build resnet50.nonsense as features"),
        ("test_vit", 0.0, "expected maps at strides 4, 8, 16, 32, got 16, 16, 16"),
        ("visformer_tiny", 0.0, "expected maps at strides 4, 8, 16, 32, got 8, 16, 32"),
        ("hrnet_w18_small", 0.0, "takes a map from 'stage1', which is none of its layers"),
        ("xception41", 0.0, "takes a map from 'blocks_1_stack_act3', which is none of its layers"),
        ("hiera_tiny_224", 0.0, "fails on an image of 128 x 128"),
        ("resnetblur18", 0.0, "keeps 'filt' out of its state"),
        ("halonet26t", 0.0, "fails on an image of 128 x 128"),
        ("inception_v3", 0.0, "expected maps of"),
        ("densenet121", 0.1, "unexpected keyword argument 'drop_path_rate'"),
    ],
)
def test_unsupported_models_are_refused(name: str, rate: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_model(experiment(name, rate=rate))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def dilated(name: str, stride: int) -> dict[str, Any]:
    return {"model.backbone": {"kind": "timm", "name": name, "output_stride": stride}}


def test_a_model_that_cannot_be_dilated_is_refused() -> None:
    masks = {"model.neck": {"kind": "none"}, "model.head": {"kind": "fcn"}, "task": {"kind": "segmentation"}}
    with pytest.raises(
        ConfigError, match=r"timm cannot build densenet121 as features .* or output_stride=32"
    ) as error:
        build_model(experiment("densenet121", **dilated("densenet121", 8), **masks))
    assert "\n" not in str(error.value)


def test_a_pyramid_takes_no_dilated_maps() -> None:
    with pytest.raises(ConfigError, match=r"expected backbone\.output_stride=32, got 16"):
        experiment("resnet50", **dilated("resnet50", 16))


def test_a_layer_that_is_called_twice_is_no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm has no such model among those with maps at all four strides."""
    forward = EfficientNetFeatures.forward

    def twice(net: EfficientNetFeatures, x: Tensor) -> list[Tensor]:
        maps = forward(net, x)
        net.blocks[0](net.bn1(net.conv_stem(x)))
        return maps

    monkeypatch.setattr(EfficientNetFeatures, "forward", twice)
    timm_sizes.cache_clear()
    with pytest.raises(
        ConfigError, match="conv_stem is called more than once, so its stages cannot be told apart"
    ):
        timm_sizes("test_efficientnet")
    timm_sizes.cache_clear()


def test_a_layer_that_takes_another_input_is_no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm has it, this model adds positions between two layers."""
    monkeypatch.setattr("raydet.models.backbones.timm.make_chain", lambda model: None)
    timm_sizes.cache_clear()
    with pytest.raises(
        ConfigError, match="is not a chain of layers: blocks_0 must take the output of the layer before it"
    ):
        timm_sizes("sam2_hiera_tiny")
    timm_sizes.cache_clear()
