"""Attention maps are what the fusions compute, and computing them does not change the detector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from torch.nn.functional import conv1d

from raydet.config import apply_overrides
from raydet.data.build import open_source
from raydet.engine.open_run import TrainedRun
from raydet.models.build import build_model
from raydet.models.fusion.cssa import CSSA
from raydet.models.fusion.gaff import GAFF
from raydet.recipes import recipe
from raydet.report.drawings.attention import Attention, StageAttention, attention_maps, stream_names
from raydet.report.drawings.heatmaps import draw_attention, value_range
from raydet.structures import Boxes, Sample, collate
from raydet.tasks.build import build_task


def untrained_run(**model: Any) -> TrainedRun:
    """A run with random weights; images of 48 x 128 on a canvas of 96 x 128, half of it padding."""
    settings: Mapping[str, Any] = {
        "data.source": {
            "kind": "synthetic",
            "num_sequences": 2,
            "frames_per_sequence": 1,
            "size_hw": [48, 128],
        },
        **{f"model.{name}": value for name, value in model.items()},
    }
    experiment = apply_overrides(recipe("demo"), settings)
    torch.manual_seed(1)
    detector = build_model(experiment).eval()
    for module in detector.modules():  # gates as far from 1/2 as in a trained detector
        if isinstance(module, GAFF):
            for parameter in (
                *module.inter.parameters(),
                *module.se_rgb.parameters(),
                *module.se_aux.parameters(),
            ):
                parameter.data *= 20
    return TrainedRun(
        Path(), experiment, build_task(experiment), detector, Path(), open_source(experiment.data), [0, 1]
    )


def first_maps(run: TrainedRun, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs of the fusion of stage 1."""
    detector, batch = run.model, collate([sample])
    rgb, aux = detector.rgb_input(batch), detector.aux_input(batch)
    return detector.encoder.rgb_stages[0](rgb), detector.encoder.aux_stages[0](aux)


@pytest.mark.parametrize("inter_shared", [False, True])
@torch.no_grad()
def test_gates_match_a_manual_computation(inter_shared: bool) -> None:
    run = untrained_run(fusion={"kind": "gaff", "inter_shared": inter_shared})
    attention = attention_maps(run, 0)
    assert [stage.stage for stage in attention.stages] == [1, 2, 3, 4]
    stage, fusion = attention.stages[0], run.model.encoder.fusions[0]
    rgb, aux = first_maps(run, attention.sample)
    # Both gates' filters, one under the other, whether they are one convolution or two.
    filters = torch.cat([conv.weight for conv in fusion.inter.convs]).flatten(1).double()
    gates = torch.einsum("oc,chw->ohw", filters, torch.cat([rgb[0], aux[0]]).double()).sigmoid()
    channels = len(gates) // 2
    names = ("rgb ← thermal + event", "thermal + event ← rgb")
    for name, by_hand in zip(names, (gates[:channels], gates[channels:]), strict=True):
        by_hand_HW = by_hand.mean(dim=0)[:12]  # 48 pixels at stride 4; the rest is padding
        assert stage.maps[name].shape == (12, 32)
        np.testing.assert_allclose(stage.maps[name], by_hand_HW, atol=1e-6)
        assert by_hand_HW.std() > 0.01
    for name, x, se in (("rgb", rgb, fusion.se_rgb), ("thermal + event", aux, fusion.se_aux)):
        squeeze, excite = se.gate[0].weight, se.gate[2].weight
        by_hand_C = torch.sigmoid(excite @ torch.relu(squeeze @ x[0].mean(dim=(1, 2))))
        np.testing.assert_allclose(stage.channel_weights[name], by_hand_C, atol=1e-6)
    assert all(not stage.switched for stage in attention.stages)


@torch.no_grad()
def test_switched_channels_come_from_the_other_stream() -> None:
    run = untrained_run(
        fusion={"kind": "cssa", "threshold": 0.5}, fusion_stages=[1, 3], elsewhere={"kind": "cmx"}
    )
    attention = attention_maps(run, 1)
    assert [stage.stage for stage in attention.stages] == [1, 3]
    stage, fusion = attention.stages[0], run.model.encoder.fusions[0]
    assert isinstance(fusion, CSSA)
    rgb, aux = first_maps(run, attention.sample)
    after = fusion(rgb, aux)
    for name, own, other, came_out in (
        ("rgb", rgb, aux, after.rgb_next),
        ("thermal + event", aux, rgb, after.aux_next),
    ):
        is_other_C = (came_out == other).all(dim=(0, 2, 3))
        assert stage.switched[name].tolist() == is_other_C.tolist()
        assert 0 < stage.switched[name].mean() < 1
        assert (came_out == own).all(dim=(0, 2, 3)).tolist() == (~is_other_C).tolist()
        weight = getattr(fusion, "weights_rgb" if name == "rgb" else "weights_aux").weight
        by_hand_C = conv1d(own.mean(dim=(2, 3))[:, None], weight[:, None], padding=1).sigmoid()[0, 0]
        np.testing.assert_allclose(stage.channel_weights[name], by_hand_C, atol=1e-6)
    mean = (after.rgb_next + after.aux_next)[:, :, :12] / 2  # without the padding
    torch.testing.assert_close(
        after.fused[:, :, :12], mean * torch.from_numpy(stage.maps["spatial attention"])
    )


def test_fusions_without_attention_have_none() -> None:
    for kind in ("cmx", "add", "identity"):
        run = untrained_run(fusion={"kind": kind}, elsewhere={"kind": "identity"})
        attention = attention_maps(run, 0)
        assert attention.stages == ()
        assert draw_attention(attention) is None


def test_attention_maps_do_not_change_the_detector() -> None:
    run = untrained_run(fusion={"kind": "gaff"})
    batch = collate([attention_maps(untrained_run(), 0).sample])
    with torch.no_grad():
        before = run.model(batch).predictions[0]
        attention_maps(run, 0)
        after = run.model(batch).predictions[0]
    assert len(before.scores) > 0
    for name in ("boxes_xyxy", "scores", "labels"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in run.model.modules())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_hooks_are_removed_after_an_error() -> None:
    run = untrained_run(fusion={"kind": "gaff"})
    run.model.neck.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attention_maps(run, 0)
    assert all(not fusion._forward_pre_hooks for fusion in run.model.encoder.fusions)


def test_streams_are_named_after_their_modalities() -> None:
    experiment = recipe("demo")
    assert stream_names(experiment) == ("rgb", "thermal + event")
    without = apply_overrides(experiment, {"data.missing": json.loads('["event"]')})
    assert stream_names(without) == ("rgb", "thermal")


def attention_of(
    maps: list[np.ndarray], *, size_hw: tuple[int, int] = (96, 128), num_channels: int = 4
) -> Attention:
    x_CHW = torch.zeros(num_channels, *size_hw)
    target = Boxes(torch.zeros(0, 4), torch.zeros(0))
    sample = Sample("$x_\x00猫<script>", "", {"rgb": x_CHW}, target, size_hw, size_hw)
    stages = tuple(
        StageAttention(
            stage,
            {"a ← b": map_HW.astype(np.float32)},
            {"a": np.full(8, 0.5, np.float32)},
            (size_hw[0] / map_HW.shape[0], size_hw[1] / map_HW.shape[1]),
        )
        for stage, map_HW in enumerate(maps, 1)
    )
    return Attention(sample, stages)


def test_all_maps_share_one_colour_scale() -> None:
    low, high = np.full((2, 2), 0.2), np.full((3, 4), 0.8)
    attention = attention_of([low, high])
    assert value_range(attention) == pytest.approx((0.2, 0.8))
    image = draw_attention(attention)
    assert image is not None
    colours = {colour: count for count, colour in image.getcolors(1 << 24) or ()}
    ends = [tuple(colormaps["viridis"](end, bytes=True)[:3]) for end in (0.0, 1.0)]
    areas = [colours.get(end, 0) for end in ends]
    # Each map is of one colour, that of its end of the scale, and both are equally large.
    assert min(areas) > 20_000
    assert max(areas) < 1.05 * min(areas)


def test_small_differences_look_small() -> None:
    low, high = value_range(attention_of([np.array([[0.501, 0.502]])]))
    assert high - low == pytest.approx(0.1)
    assert low <= 0.501 < 0.502 <= high


@pytest.mark.parametrize("size_hw", [(32, 512), (512, 32)])
@pytest.mark.parametrize("num_channels", [1, 3, 20])
def test_any_shape_and_any_channels(size_hw: tuple[int, int], num_channels: int) -> None:
    attention = attention_of([np.eye(4)], size_hw=size_hw, num_channels=num_channels)
    image = draw_attention(attention, unused={"rgb"})
    assert image is not None
    assert 250 < min(image.size) <= max(image.size) < 1400


@torch.no_grad()
def test_wrappers_do_not_hide_the_inner_fusion() -> None:
    """A guided, gated block without excitation: the gates of what enters the block itself, and nothing on channels."""
    fusion = {"kind": "gaff", "se_reduction": None, "gated": True, "guide_intra": True, "guide_inter": True}
    run = untrained_run(fusion=fusion)
    attention = attention_maps(run, 0)
    stage, guided = attention.stages[0], run.model.encoder.fusions[0]
    seen: list[torch.Tensor] = []
    with guided.fusion.fusion.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs)):
        guided(*first_maps(run, attention.sample))
    into_rgb, _ = guided.fusion.fusion.inter(*seen)
    shown = stage.maps["rgb ← thermal + event"]
    np.testing.assert_allclose(shown, into_rgb[0].mean(dim=0)[: len(shown)], atol=1e-6)
    assert stage.channel_weights == {}
    assert draw_attention(attention) is not None
