"""The options of GAFF: parameter counts, limits in which the block equals the default, closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import sin_filled, sin_input
from torch import Tensor, nn

from raydet.cli.spaces import load_space, space_summary
from raydet.config import apply_overrides
from raydet.data.build import open_source
from raydet.data.transforms import eval_transform
from raydet.errors import ConfigError
from raydet.models.build import build_model, describe_parameters
from raydet.models.fusion.gaff import GAFF, InterModalityGates
from raydet.models.fusion.gated import Gated
from raydet.models.fusion.guided import Guided
from raydet.recipes import recipe
from raydet.structures import collate
from raydet.tune.cells import grid_cells, trials_of

WIDTHS = (64, 128, 320, 512)
PLAIN = 2_697_216
"""Parameters of four plain blocks in mit_b1."""


def two_maps(height: int = 4, width: int = 5) -> tuple[Tensor, Tensor]:
    return sin_input(2, 8, height, width), sin_input(2, 8, height, width, phase=1)


def pairs(*shapes: tuple[int, int]) -> Any:
    return pytest.mark.parametrize("hw", shapes, ids=str)


# --- parameters

EXTENSIONS: dict[str, tuple[dict[str, Any], int]] = {
    "out_channels": ({"out_channels": 256}, sum((2 * c + 2) * (256 - c) for c in WIDTHS)),
    "out_channels_of_a_bottleneck": (
        {"out_channels": [64, 96, 256, 512], "merge_bottleneck": True},
        sum(c * c + 2 * c for c in WIDTHS) + (128 + 2) * (96 - 128) + (320 + 2) * (256 - 320),
    ),
    "se_by_stage": (
        {"se_reduction": [2, 4, 8, 16]},
        sum(4 * c * (c // r) - c * c for c, r in zip(WIDTHS, (2, 4, 8, 16), strict=True)),
    ),
    "lite": ({"se_reduction": None}, -sum(c * c for c in WIDTHS)),
    "partner": ({"merge_weights": "partner"}, 4 * 2),
    "both": ({"merge_weights": "both"}, 4 * 4),
    "scales": ({"inter_scales": 3}, sum(8 * c * c for c in WIDTHS)),
    "scales_shared": ({"inter_scales": 3, "inter_shared": True}, sum(8 * c * c for c in WIDTHS)),
    "gated": ({"gated": True}, sum(2 * c * c + c for c in WIDTHS)),
    "guide_intra": ({"guide_intra": True}, sum(2 * c + 2 for c in WIDTHS)),
    "guide_inter": ({"guide_intra": True, "guide_inter": True}, sum(6 * c + 4 for c in WIDTHS)),
}


@pytest.mark.parametrize(("options", "more"), EXTENSIONS.values(), ids=EXTENSIONS)
def test_parameters(options: dict[str, Any], more: int) -> None:
    experiment = apply_overrides(recipe("rgbte_mit_b1"), {"model.fusion": {"kind": "gaff", **options}})
    counts = describe_parameters(experiment)
    assert counts["fusion"] == PLAIN + more
    widths = experiment.model.fusion_at(1).model_dump()["out_channels"] or WIDTHS
    widths = (widths,) * 4 if isinstance(widths, int) else widths
    assert counts["fpn"] == sum(256 * width + 256 for width in widths) + 4 * 590_080


# --- limits in which the block equals the default


@pytest.mark.parametrize("merge_weights", ["partner", "both"])
def test_weighted_blocks_start_as_the_default_block(merge_weights: Any) -> None:
    plain, weighted = sin_filled(GAFF(channels=8)), GAFF(channels=8, merge_weights=merge_weights).double()
    weighted.load_state_dict(plain.state_dict(), strict=False)
    for x, y in zip(weighted.eval()(*two_maps()).maps, plain(*two_maps()).maps, strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


def test_each_weight_scales_its_part() -> None:
    gaff = sin_filled(GAFF(channels=8, merge_weights="both"))
    with torch.no_grad():
        gaff.own.copy_(torch.tensor([2.0, 3.0]))
        gaff.partner.copy_(torch.tensor([5.0, 7.0]))
    rgb, aux = two_maps()
    into_rgb, into_aux = gaff.inter(rgb, aux)
    out = gaff(rgb, aux)
    torch.testing.assert_close(out.rgb_next, 2 * gaff.se_rgb(rgb) + 5 * into_rgb * aux)
    torch.testing.assert_close(out.aux_next, 3 * gaff.se_aux(aux) + 7 * into_aux * rgb)


def test_lite_has_gates_only() -> None:
    gaff = sin_filled(GAFF(channels=8, se_reduction=None))
    rgb, aux = two_maps()
    into_rgb, into_aux = gaff.inter(rgb, aux)
    out = gaff(rgb, aux)
    torch.testing.assert_close(out.rgb_next, rgb + into_rgb * aux)
    torch.testing.assert_close(out.aux_next, aux + into_aux * rgb)


@pytest.mark.parametrize(("bias", "is_plain"), [(60.0, True), (-60.0, False)])
def test_a_saturated_gate_gives_the_fusion_or_the_rgb_map(bias: float, is_plain: bool) -> None:
    plain = sin_filled(GAFF(channels=8))
    gated = Gated(plain, channels=8).double().eval()
    nn.init.constant_(gated.gate.bias, bias)
    rgb, aux = two_maps()
    expected = plain(rgb, aux).fused if is_plain else rgb
    torch.testing.assert_close(gated(rgb, aux).fused, expected, atol=1e-12, rtol=0)


def test_a_gate_mixes_the_fusion_and_the_rgb_map() -> None:
    gated = sin_filled(Gated(GAFF(channels=8), channels=8))
    rgb, aux = two_maps()
    gate = nn.functional.conv2d(torch.cat((rgb, aux), dim=1), gated.gate.weight, gated.gate.bias).sigmoid()
    plain = gated.fusion(rgb, aux)
    out = gated(rgb, aux)
    torch.testing.assert_close(out.fused, gate * plain.fused + (1 - gate) * rgb)
    assert torch.equal(out.rgb_next, plain.rgb_next)


@pytest.mark.parametrize("has_choice", [False, True])
def test_guided_attention_without_weights(has_choice: bool) -> None:
    """Masks and weights of one half: every map is scaled by 1.5, and again by 1.5."""
    plain = sin_filled(GAFF(channels=8))
    guided = Guided(plain, channels=8, has_choice=has_choice).double().eval()
    for layer in (guided.mask_rgb, guided.mask_aux, guided.choice):
        for parameter in layer.parameters() if layer is not None else ():
            nn.init.zeros_(parameter)
    scale = 1.5**2 if has_choice else 1.5
    rgb, aux = two_maps()
    torch.testing.assert_close(guided(rgb, aux).fused, plain(scale * rgb, scale * aux).fused)


def test_guided_attention_is_the_papers() -> None:
    guided = sin_filled(Guided(GAFF(channels=8), channels=8, has_choice=True))
    rgb, aux = two_maps()
    seen: list[Tensor] = []
    guided.fusion.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    guides = guided(rgb, aux).guides

    def scores(x: Tensor, layer: nn.Linear) -> Tensor:  # as in the paper: a 1x1 convolution
        return nn.functional.conv2d(x, layer.weight[:, :, None, None], layer.bias)

    weights = scores(torch.cat((rgb, aux), dim=1), guided.choice).softmax(dim=1)
    for stream, (x, layer) in enumerate(((rgb, guided.mask_rgb), (aux, guided.mask_aux))):
        logits = scores(x, layer)
        torch.testing.assert_close(guides.masks_B2HW[:, stream], logits[:, 0])
        torch.testing.assert_close(seen[stream], x * (1 + logits.sigmoid()) * (1 + weights[:, stream, None]))
    torch.testing.assert_close(guides.choice_B2HW.softmax(dim=1), weights)


# --- scales


def test_coarse_scales_with_zero_weights_scale_the_logits() -> None:
    gates = InterModalityGates(channels=8, shared=False, num_scales=3).double()
    for parameter in gates.coarse.parameters():
        nn.init.zeros_(parameter)
    rgb, aux = two_maps()
    for gate, conv in zip(gates(rgb, aux), gates.convs, strict=True):
        torch.testing.assert_close(gate, (conv(torch.cat((rgb, aux), dim=1)) / 3).sigmoid())


@pairs((4, 4), (5, 7), (1, 1), (1, 9), (2, 3))
def test_scales_follow_their_formula(hw: tuple[int, int]) -> None:
    """Pixel by pixel, in loops; on maps of odd size, and on maps smaller than a cell."""
    torch.manual_seed(0)
    gates = InterModalityGates(channels=8, shared=True, num_scales=3).double()
    rgb, aux = two_maps(*hw)
    both = torch.cat((rgb, aux), dim=1)
    total = gates.convs[0](both)
    for scale, (conv,) in enumerate(gates.coarse, 1):
        size = 2**scale
        rows, columns = (-(-side // size) for side in hw)
        cells = torch.zeros(2, 16, rows, columns, dtype=torch.float64)
        for i in range(rows):
            for j in range(columns):
                cell = both[:, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
                cells[:, :, i, j] = cell.mean(dim=(2, 3))
        logits = conv(cells)
        for y in range(hw[0]):
            for x in range(hw[1]):
                total[:, :, y, x] += between_centres(logits, (y + 0.5) / size - 0.5, (x + 0.5) / size - 0.5)
    expected = (total / 3).sigmoid().chunk(2, dim=1)
    torch.testing.assert_close(gates(rgb, aux), expected)


def between_centres(x_BCHW: Tensor, y: float, x: float) -> Tensor:
    """Bilinear interpolation; outside the outermost centres a map is constant."""
    rows, columns = x_BCHW.shape[2:]
    result = torch.zeros(x_BCHW.shape[:2], dtype=x_BCHW.dtype)
    y, x = max(y, 0.0), max(x, 0.0)
    for i in (int(y), int(y) + 1):
        for j in (int(x), int(x) + 1):
            share = max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
            result += share * x_BCHW[:, :, min(i, rows - 1), min(j, columns - 1)]
    return result


# --- in a detector


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"guide_inter": True}, "set guide_intra, too"),
        ({"gated": True, "out_channels": 64}, "leave out out_channels, got 64"),
        ({"se_reduction": [2, 4, 8]}, "model.fusion.gaff.se_reduction"),
        ({"se_reduction": 0}, "model.fusion.gaff.se_reduction"),
    ],
)
def test_invalid_options_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(recipe("demo"), {"model.fusion": {"kind": "gaff", **overrides}})


def test_the_fused_flow_keeps_the_width() -> None:
    changes = {"model.flow": "fused", "model.fusion": {"kind": "gaff", "out_channels": 256}}
    with pytest.raises(ConfigError, match=r"must be 64 at stage 1, got 256: with model\.flow=fused"):
        describe_parameters(apply_overrides(recipe("rgbte_mit_b1"), changes))
    last = describe_parameters(
        apply_overrides(recipe("rgbte_mit_b1"), {**changes, "model.fusion_stages": [4]})
    )
    assert last["fpn"] == 256 * (64 + 128 + 320 + 256) + 4 * 256 + 4 * 590_080


def test_the_space_builds_and_trains_every_arm() -> None:
    study = load_space("gaff_extensions", recipe("demo"), {})
    trials = trials_of(study, grid_cells(study, study.phases[-1], first_number=1), (0,))
    assert len({trial.key for trial in trials}) == len(trials) == 11
    assert trials[0].experiment.model.fusion == recipe_gaff()
    assert space_summary("gaff_extensions").endswith("?")
    source = open_source(study.base.data)
    batch = collate([eval_transform(source.read(i), canvas_hw=study.base.data.canvas_hw) for i in range(2)])
    for trial in trials:
        detector = build_model(trial.experiment).train()
        losses = detector(batch).losses
        sum(losses.values()).backward()
        assert [name for name, p in detector.named_parameters() if p.grad is None] == [], trial.name
        assert ("loss_guide_intra" in losses) == ("guide" in trial.name)
        assert ("loss_guide_inter" in losses) == ("guide_both" in trial.name)
        assert isinstance(detector.eval()(batch).predictions, list)


def recipe_gaff() -> Any:
    return apply_overrides(recipe("demo"), {"model.fusion": {"kind": "gaff"}}).model.fusion
