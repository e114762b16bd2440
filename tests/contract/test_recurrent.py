"""Models with memory: sizes, streams in pieces, resets of one lane, recomputation, other encoders and heads."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from raydet.bench.train_step import random_batch
from raydet.config import Experiment, apply_overrides
from raydet.errors import ConfigError
from raydet.models.build import build_model, describe_parameters
from raydet.models.carry import carry_of
from raydet.models.model import Model
from raydet.parallel.precision import autocast
from raydet.parallel.recompute import recompute_activations
from raydet.plan.flops import forward_flops
from raydet.plan.measure import measure
from raydet.recipes import recipe
from raydet.structures import Batch, Carry

ALONE = {
    "model.rgb_modalities": ["event"],
    "model.fusion": {"kind": "identity"},
    "model.elsewhere": {"kind": "identity"},
}
YOLOX: dict[str, Any] = {
    "model.head": {"kind": "yolox", "size_aware": "off"},
    "model.neck": {"kind": "pafpn", "levels": 3},
}
BOTH = {"model.aux_modalities": ["event"]}
"""RGB and events, each with a memory, fused by CMX."""
KINDS: dict[str, dict[str, Any]] = {
    "yolox": ALONE | YOLOX,
    "yolox, patch 2, four levels": ALONE
    | YOLOX
    | {"model.backbone.patch": 2, "model.neck.levels": 4, "model.head.size_aware": "exponential"},
    "faster_rcnn": ALONE,
    "yolox on two streams": BOTH | YOLOX,
    "faster_rcnn on two streams": BOTH,
    "guided": BOTH | {"model.fusion": {"kind": "gaff", "guide_intra": True, "guide_inter": True}},
}
DETECTORS = {
    ("base", 4, 3, 2): 18_536_469,
    ("small", 4, 3, 2): 9_870_165,
    ("tiny", 4, 3, 2): 4_405_141,
    ("base", 2, 4, 3): 19_280_288,
    ("base", 2, 4, 8): 19_282_868,
}
"""Parameters by variant, patch, levels and classes; the last two are derived from the published parts."""


def experiment(canvas_hw: tuple[int, int] = (64, 128), **settings: Any) -> Experiment:
    return apply_overrides(
        recipe("demo"),
        {
            "model.backbone": {
                "kind": "rvt",
                "variant": "nano",
                "patch": 4,
                "memory": "lstm",
                "partition_px": 64,
            },
            "data.canvas_hw": list(canvas_hw),
            "data.event_channels": 20,
            **settings,
        },
    )


@lru_cache
def model_of(kind: str, canvas_hw: tuple[int, int] = (64, 128)) -> Model:
    """Its branches count: LayerScale starts at 1e-5, so without that every test of attention would pass."""
    torch.manual_seed(5)
    model = build_model(experiment(canvas_hw, **KINDS[kind]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("scale1", "scale2")):
                parameter.uniform_(0.5, 1.0)
    return model


def clip_of(frames: int, lanes: int = 2, *, seed: int = 0, canvas_hw: tuple[int, int] = (64, 128)) -> Batch:
    batch = random_batch(experiment(canvas_hw), frames * lanes, 2, seed=seed)
    return replace(batch, clip_frames=frames, is_first=torch.zeros(lanes, dtype=torch.bool))


def frames_of(batch: Batch, first: int, last: int) -> Batch:
    """Some frames of every lane."""
    lanes = batch.size // batch.clip_frames
    rows = slice(first * lanes, last * lanes)
    return replace(
        batch,
        modalities={name: x[rows] for name, x in batch.modalities.items()},
        valid_hw=batch.valid_hw[rows],
        source_hw=batch.source_hw[rows],
        target=type(batch.target)(*(x[rows] for x in batch.target)),
        image_ids=batch.image_ids[rows],
        clip_frames=last - first,
    )


def maps_of(model: Model, batch: Batch, carry: Carry | None = None) -> tuple[list[Tensor], Carry]:
    maps, _, carry = model.encoder(
        model.rgb_input(batch), model.aux_input(batch), carry, clip_frames=batch.clip_frames
    )
    return maps, carry


@pytest.mark.parametrize(("variant", "patch", "levels", "classes"), DETECTORS)
def test_parameters_of_whole_detectors_are_as_published(
    variant: str, patch: int, levels: int, classes: int
) -> None:
    detector = experiment(
        (384, 640),
        **ALONE,
        **{
            "model.head": {"kind": "yolox"},
            "model.neck": {"kind": "pafpn", "levels": levels, "depth": 0.67 if variant == "base" else 0.33},
            "model.backbone.variant": variant,
            "model.backbone.patch": patch,
            "data.classes": [f"class {index}" for index in range(classes)],
        },
    )
    counts = describe_parameters(detector)
    assert counts["total"] == DETECTORS[variant, patch, levels, classes]
    assert sum(counts.values()) == 2 * counts["total"]


@pytest.mark.parametrize(
    ("patch", "levels", "sizes_hw", "predictions"),
    [
        (4, 3, [(96, 160), (48, 80), (24, 40), (12, 20)], 5_040),
        (2, 4, [(192, 320), (96, 160), (48, 80), (24, 40)], 81_600),
    ],
)
def test_maps_and_predictions_are_as_published(
    patch: int, levels: int, sizes_hw: list[tuple[int, int]], predictions: int
) -> None:
    settings = {**ALONE, **YOLOX, "model.backbone.patch": patch, "model.neck.levels": levels}
    with torch.device("meta"), torch.no_grad():
        model = build_model(experiment((384, 640), **settings)).eval()
        maps = model.encoder(torch.empty(1, 20, 384, 640), torch.empty(1, 0, 384, 640)).maps
        assert [tuple(x.shape[-2:]) for x in maps] == sizes_hw
        rows_BAD = model.head.parts(model.neck(maps))["branches"]()
    assert isinstance(rows_BAD, Tensor)
    assert rows_BAD.shape[1] == predictions


@pytest.mark.parametrize("kind", KINDS)
def test_two_windows_with_memory_are_one(kind: str) -> None:
    model, clip = model_of(kind).eval(), clip_of(10)
    with torch.no_grad():
        whole, at_end = maps_of(model, clip)
        first, carry = maps_of(model, frames_of(clip, 0, 5))
        second, at_end_too = maps_of(model, frames_of(clip, 5, 10), carry)
        forgotten, _ = maps_of(model, frames_of(clip, 5, 10))
    for x, y, z, lost in zip(whole, first, second, forgotten, strict=True):
        torch.testing.assert_close(torch.cat((y, z)), x, atol=2e-6, rtol=1e-5)
        assert (lost - z).abs().max() > 1e-3
    for name, rows in at_end.items():
        torch.testing.assert_close(at_end_too[name], rows, atol=2e-6, rtol=1e-5)


def test_the_carry_names_stages_and_has_a_row_per_lane() -> None:
    _, _, carry = model_of("yolox on two streams").train()(clip_of(2, 3), {}, want="losses")
    parts = [
        f"{stream}.{stage}.{part}" for stream in ("rgb", "aux") for stage in range(1, 5) for part in "hc"
    ]
    assert sorted(carry) == sorted(parts)
    assert {len(rows) for rows in carry.values()} == {3}
    assert all(rows.is_contiguous() and not rows.requires_grad for rows in carry.values())


def test_a_sequence_that_begins_resets_its_lane_only() -> None:
    model, clip = model_of("yolox").eval(), clip_of(2, 3)
    with torch.no_grad():
        _, carry = maps_of(model, clip)
        later = clip_of(2, 3, seed=1)
        kept, _ = maps_of(model, later, carry_of(carry, 0, torch.tensor([False, False, False])))
        reset, _ = maps_of(model, later, carry_of(carry, 0, torch.tensor([False, True, False])))
        fresh, _ = maps_of(model, later)
    for x, y, new in zip(kept, reset, fresh, strict=True):
        of_lane, of_lane_reset, of_lane_new = (m.unflatten(0, (2, 3)).unbind(1) for m in (x, y, new))
        assert torch.equal(of_lane[0], of_lane_reset[0])
        assert torch.equal(of_lane[2], of_lane_reset[2])
        assert torch.equal(of_lane_reset[1], of_lane_new[1])
        assert not torch.allclose(of_lane[1], of_lane_reset[1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["block", "selective"])
def test_gradients_are_everywhere_and_survive_recomputation(kind: str, mode: Any) -> None:
    gradients, clip = [], clip_of(3)
    _, carry = maps_of(model_of(kind), clip_of(1, seed=1))
    for is_recomputed in (False, True):
        model = copy.deepcopy(model_of(kind)).train()
        if is_recomputed:
            units = model.units()
            recompute_activations([*units.blocks, *units.fusions], mode)
        torch.manual_seed(3)
        torch.stack(list(model(clip, carry, want="losses").losses.values())).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        again = gradients[1][name]
        assert gradient is not None, name
        assert again is not None, name
        assert gradient.isfinite().all(), name
        # Elsewhere some are 0, as of the box at a level where no cell has an object.
        assert gradient.any() or "_stages." not in name, name
        assert torch.equal(gradient, again), name


def test_units_are_blocks_and_memories() -> None:
    model = model_of("yolox")
    inside = {id(p) for unit in model.units().blocks for p in unit.parameters()}
    outside = {n for n, p in model.encoder.named_parameters() if id(p) not in inside}
    assert len(model.units().blocks) == 8
    assert all("patch_embed" in name for name in outside)


@pytest.mark.parametrize("kind", KINDS)
def test_without_memory_there_is_no_carry(kind: str) -> None:
    torch.manual_seed(5)
    model = build_model(experiment(**KINDS[kind] | {"model.backbone.memory": "none"})).eval()
    with torch.no_grad():
        output = model(clip_of(2), {}, want="both")
    assert output.carry == {}
    assert len(output.predictions) == 4


@pytest.mark.parametrize("source_hw", [(260, 346), (720, 1280), (240, 304), (128, 128)])
def test_sensors_of_any_size_fit_a_canvas(source_hw: tuple[int, int]) -> None:
    for partition_px in (32, 64):
        height, width = (-(-side // partition_px) * partition_px for side in source_hw)
        settings = {**ALONE, **YOLOX, "model.backbone.partition_px": partition_px}
        with torch.device("meta"), torch.no_grad():
            model = build_model(experiment((height, width), **settings))
            maps, _, _ = model.encoder(torch.empty(2, 20, height, width), torch.empty(2, 0, height, width))
        assert tuple(maps[0].shape) == (2, 16, height // 4, width // 4)


def test_a_canvas_that_attention_does_not_divide_is_refused() -> None:
    with pytest.raises(
        (ConfigError, ValidationError), match=r"multiples of model\.backbone\.partition_px=64"
    ):
        experiment((96, 128))
    model = build_model(experiment((64, 64), **ALONE))
    with pytest.raises(ConfigError, match=r"multiples of 64, got 96 x 128; set data\.canvas_hw"):
        model.encoder(torch.zeros(1, 20, 96, 128), torch.zeros(1, 0, 96, 128))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.head": {"kind": "yolox"}}, r"yolox takes neck\.kind=pafpn, got fpn"),
        ({"model.neck": {"kind": "pafpn"}}, r"faster_rcnn takes neck\.kind=fpn, got pafpn"),
        ({"model.backbone.patch": 2}, r"expected backbone\.patch=4, got 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(**settings)


def test_bf16_keeps_the_states_in_fp32() -> None:
    model, clip = model_of("yolox").train(), clip_of(2)
    with autocast("bf16", torch.device("cpu")):
        losses, _, carry = model(clip, {}, want="losses")
    assert {rows.dtype for rows in carry.values()} == {torch.float32}
    exact = model(clip, {}, want="losses").losses
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], atol=0.1, rtol=0.1)


def test_plan_and_operations_need_no_memory() -> None:
    made = experiment(**KINDS["yolox, patch 2, four levels"])
    assert "stage 4 rgb, block 2" in measure(made, num_objects=3, device_type="cuda").forward
    flops = forward_flops(made)
    assert all(flops.values())
    assert flops["total"] == sum(flops.values()) // 2


def test_yolox_is_a_head_for_two_streams_without_memory() -> None:
    """What the neck does not read, the fused map of the first stage, is not trained."""
    made = apply_overrides(recipe("demo"), YOLOX)
    model = build_model(made).train()
    torch.stack(list(model(random_batch(made, 2, 3), want="losses").losses.values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith("encoder.fusions.0.ffm.") for name in frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_of_labelled_images_only(kind: str) -> None:
    model, clip = model_of(kind).eval(), clip_of(3)
    index = torch.tensor([1, 2, 5])
    is_labelled = torch.zeros(6, dtype=torch.bool).index_fill_(0, index, True)
    with torch.no_grad():
        torch.manual_seed(1)
        output = model(replace(clip, is_labelled=is_labelled), {}, want="both")
        maps, _ = maps_of(model, clip)
        labelled = [x[index] for x in maps]
        torch.manual_seed(1)
        expected = model.head(model.neck(labelled), clip.at(index), want="losses").losses
        everything = model(clip, {}, want="both")
    for name, loss in expected.items():
        torch.testing.assert_close(output.losses[name], loss, atol=1e-6, rtol=1e-5)
        assert abs(everything.losses[name] - loss) > 1e-6
    assert len(output.predictions) == 6
    assert torch.equal(output.carry["rgb.4.h"], everything.carry["rgb.4.h"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_labels_has_zero_gradients(kind: str) -> None:
    model = copy.deepcopy(model_of(kind)).train()
    clip = replace(clip_of(2), is_labelled=torch.zeros(4, dtype=torch.bool))
    losses = model(clip, {}, want="losses").losses
    assert {*losses} >= {*model.loss_names}
    assert not any(losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_histograms_of_another_number_of_bins_are_refused() -> None:
    few = apply_overrides(recipe("event_demo"), {"data.event_channels": 10})
    with pytest.raises(
        ConfigError,
        match=r"reads 10 channel\(s\) of modality 'event', the images have 20; set data\.event_channels=20",
    ):
        build_model(few)(random_batch(recipe("event_demo"), 1, num_objects=1))
