"""The detector end to end: parameter counts, input preparation, losses, labels, precision."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops.poolers import MultiScaleRoIAlign

from raydet.config import (
    DataConfig,
    Experiment,
    FasterRCNNConfig,
    GAFFFusion,
    IdentityFusion,
    ModelConfig,
    Normalization,
    apply_overrides,
)
from raydet.errors import ConfigError
from raydet.models.build import build_model, describe_parameters, parameter_counts
from raydet.models.heads.box import LEVEL_STRIDES, BoxHeads
from raydet.models.heads.rpn import RegionProposals
from raydet.models.heads.targets import targets_of
from raydet.models.inputs import InputStream, valid_mask
from raydet.models.model import Model
from raydet.models.necks.fpn import FPN, LEVELS
from raydet.ops.rows import row_table
from raydet.recipes import recipe
from raydet.structures import PADDED_LABEL, Batch, BoxBatch, Boxes, Detections, Sample, collate

LOSSES = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"]


def tiny(**model: object) -> Experiment:
    """The demo recipe with parts of the model replaced."""
    experiment = recipe("demo")
    return experiment.model_copy(update={"model": experiment.model.model_copy(update=model)})


def make_batch(
    *, counts: tuple[int, ...] = (3, 1), canvas_hw: tuple[int, int] = (96, 128), seed: int = 0
) -> Batch:
    """Noise with a bright rectangle per box; labels 0, 1, 2 in turn."""
    generator = torch.Generator().manual_seed(seed)
    height, width = canvas_hw
    size, most = len(counts), max(1, *counts)
    modalities = {
        name: torch.randint(0, 80, (size, channels, height, width), generator=generator).to(torch.uint8)
        for name, channels in (("rgb", 3), ("thermal", 1), ("event", 1))
    }
    boxes_xyxy = torch.zeros(size, most, 4)
    labels = torch.full((size, most), PADDED_LABEL)
    for row, count in enumerate(counts):
        for n in range(count):
            x, y = (int(torch.randint(0, side - 32, (), generator=generator)) for side in (width, height))
            boxes_xyxy[row, n] = torch.tensor([x, y, x + 24.0, y + 20.0 + 4 * n])
            labels[row, n] = n % 3
            for images in modalities.values():
                images[row, :, y : y + 20 + 4 * n, x : x + 24] = 200
    return Batch(
        modalities=modalities,
        valid_hw=torch.tensor([canvas_hw] * size),
        source_hw=torch.tensor([canvas_hw] * size),
        target=BoxBatch(boxes_xyxy, labels, torch.tensor(counts)),
        image_ids=tuple(f"image{row}" for row in range(size)),
    )


# --- parameter counts

TOTALS = {"b0": 27_786_433, "b1": 60_014_945, "b2": 82_104_673, "b4": 155_397_473, "b5": 196_598_113}
PARTS = {
    "patch_embeds_rgb": {"b0": 485_472, "b1": 1_929_408, "b2": 1_929_408, "b4": 1_929_408, "b5": 1_929_408},
    "patch_embeds_aux": {"b0": 483_904, "b1": 1_926_272, "b2": 1_926_272, "b4": 1_926_272, "b5": 1_926_272},
    "blocks_rgb": {"b0": 2_832_896, "b1": 11_219_968, "b2": 22_264_832, "b4": 58_911_232, "b5": 79_511_552},
    "blocks_aux": {"b0": 2_832_896, "b1": 11_219_968, "b2": 22_264_832, "b4": 58_911_232, "b5": 79_511_552},
    "norms_rgb": {"b0": 1_024, "b1": 2_048, "b2": 2_048, "b4": 2_048, "b5": 2_048},
    "norms_aux": {"b0": 1_024, "b1": 2_048, "b2": 2_048, "b4": 2_048, "b5": 2_048},
    "fusion": {"b0": 4_156_936, "b1": 16_591_880, "b2": 16_591_880, "b4": 16_591_880, "b5": 16_591_880},
    "fpn": {"b0": 2_492_416, "b1": 2_623_488, "b2": 2_623_488, "b4": 2_623_488, "b5": 2_623_488},
    "rpn": dict.fromkeys(TOTALS, 593_935),
    "roi_heads": dict.fromkeys(TOTALS, 13_905_930),
}


@pytest.mark.parametrize("name", TOTALS)
def test_parameters_of_the_published_detectors(name: str) -> None:
    counts = describe_parameters(recipe(f"rgbte_mit_{name}"))
    assert counts == {"total": TOTALS[name], **{part: sizes[name] for part, sizes in PARTS.items()}}


def test_a_real_detector_counts_like_a_described_one() -> None:
    experiment = recipe("demo")
    counts = parameter_counts(build_model(experiment))
    assert counts == describe_parameters(experiment)
    assert counts["total"] == sum(counts.values()) - counts["total"]


def test_one_gaff_stage_replaces_one_cmx_stage() -> None:
    base = recipe("rgbte_mit_b1")
    model = base.model.model_copy(update={"fusion": GAFFFusion(), "fusion_stages": (4,)})
    counts = describe_parameters(base.model_copy(update={"model": model}))
    cmx_stage = (26 + 17) * 512**2 + (9 + 26) * 512 + 2
    assert counts["total"] == TOTALS["b1"] - cmx_stage + 1_836_032


# --- input preparation


def test_images_are_normalised_and_padding_is_zero() -> None:
    stream = InputStream({"rgb": ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)), "event": ((0.0,), (0.5,))})
    batch = replace(make_batch(), valid_hw=torch.tensor([[96, 128], [50, 70]]))
    x = stream(batch)
    assert x.shape == (2, 4, 96, 128)
    expected = (batch.modalities["rgb"][1, 2, 49, 69].item() / 255 - 0.3) / 0.2
    assert x[1, 2, 49, 69].item() == pytest.approx(expected, rel=1e-5)
    assert x[1, 3, 0, 0].item() == pytest.approx(batch.modalities["event"][1, 0, 0, 0].item() / 255 / 0.5)
    assert x[0].ne(0).any(dim=0)[50:, 70:].any()
    assert not x[1, :, 50:].any()
    assert not x[1, :, :, 70:].any()


def test_floats_and_bytes_are_the_same_image() -> None:
    stream = InputStream({"rgb": ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))})
    batch = make_batch()
    floats = {name: x / 255 for name, x in batch.modalities.items()}
    torch.testing.assert_close(stream(batch), stream(replace(batch, modalities=floats)))


def test_a_missing_modality_is_zero_even_where_the_mean_is_not() -> None:
    normalization = {"thermal": ((0.5,), (0.2,)), "event": ((0.1,), (0.5,))}
    batch = make_batch()
    batch = replace(batch, modalities={"thermal": batch.modalities["thermal"]})
    x = InputStream(normalization, missing=("event",))(batch)
    assert x[:, 0].any()
    assert not x[:, 1].any()
    with pytest.raises(ConfigError, match=r"'event', the images have thermal; add 'event' to data\.missing"):
        InputStream(normalization)(batch)


def test_a_dropped_modality_is_zero_for_its_images_only() -> None:
    stream = InputStream({"rgb": ((0.5, 0.4, 0.3), (0.2,) * 3), "thermal": ((0.5,), (0.2,))})
    batch = make_batch(counts=(1, 1, 1))
    dropping = replace(batch, dropped={"thermal": torch.tensor([False, True, False])})
    plain, dropped = stream(batch), stream(dropping)
    assert torch.equal(dropped[:, :3], plain[:, :3])
    assert torch.equal(dropped[[0, 2], 3], plain[[0, 2], 3])
    assert not dropped[1, 3].any()
    # Exactly as a missing one.
    missing = InputStream(
        {"rgb": ((0.5, 0.4, 0.3), (0.2,) * 3), "thermal": ((0.5,), (0.2,))}, missing=("thermal",)
    )
    assert torch.equal(dropped[1], missing(batch)[1])
    other = replace(batch, dropped={"event": torch.tensor([True, True, True])})
    assert torch.equal(stream(other), plain)


def test_dropped_modalities_are_part_of_the_batch() -> None:
    samples = [
        Sample(
            image_id=str(number),
            group_id="",
            modalities={name: torch.zeros(1, 32, 32, dtype=torch.uint8) for name in ("thermal", "event")},
            target=Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
            source_hw=(32, 32),
            valid_hw=(32, 32),
            dropped=frozenset(dropped),
        )
        for number, dropped in enumerate([(), ("event",), ()])
    ]
    batch = collate(samples)
    assert {name: x.tolist() for name, x in batch.dropped.items()} == {"event": [False, True, False]}
    assert batch.to("cpu").dropped["event"].tolist() == [False, True, False]
    assert batch.tensors()["dropped.event"] is batch.dropped["event"]
    assert collate(samples[:1]).dropped == {}


def test_valid_mask() -> None:
    mask = valid_mask(torch.tensor([[2, 3], [4, 4]]), (4, 4))
    assert mask.shape == (2, 1, 4, 4)
    assert mask.sum(dim=(1, 2, 3)).tolist() == [6, 16]


def test_normalisation_belongs_to_the_config_not_to_the_weights() -> None:
    keys = build_model(recipe("demo")).state_dict()
    assert not any(key.startswith(("rgb_input", "aux_input")) for key in keys)


# --- pyramid, anchors, pooling


def test_pyramid_levels() -> None:
    neck = FPN(in_channels=(4, 8, 12, 16), channels=6)
    maps = [
        torch.rand(1, c, *hw)
        for c, hw in zip((4, 8, 12, 16), ((18, 26), (9, 13), (5, 7), (3, 4)), strict=True)
    ]
    pyramid = neck(maps)
    assert tuple(pyramid) == LEVELS
    assert [tuple(x.shape) for x in pyramid.values()] == [
        (1, 6, 18, 26), (1, 6, 9, 13), (1, 6, 5, 7), (1, 6, 3, 4), (1, 6, 2, 2),
    ]  # fmt: skip
    assert torch.equal(pyramid["pool"], pyramid["3"][:, :, ::2, ::2])


def test_anchors_of_the_published_canvas() -> None:
    defaults = FasterRCNNConfig()
    rpn = RegionProposals(
        channels=8,
        anchor_sizes=defaults.anchor_sizes,
        aspect_ratios=defaults.aspect_ratios,
        pre_nms_top_n=defaults.rpn_pre_nms_top_n,
        post_nms_top_n=defaults.rpn_post_nms_top_n,
        batch_size_per_image=256,
    )
    grids = [(200, 264), (100, 132), (50, 66), (25, 33), (13, 17)]
    anchors = rpn.anchors([torch.empty(1, 8, *grid) for grid in grids], (800, 1056))
    assert len(anchors) == 211_038
    cells = [height * width * 3 for height, width in grids]
    for size, per_level in zip(defaults.anchor_sizes, anchors.split(cells), strict=True):
        area = (per_level[:, 2] - per_level[:, 0]) * (per_level[:, 3] - per_level[:, 1])
        assert area.sqrt().mean().item() == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("levels", [LEVELS, LEVELS[:-1]])
def test_roi_pooling_is_torchvisions_on_a_full_canvas(levels: tuple[str, ...]) -> None:
    pyramid = {
        level: torch.rand(1, 4, 256 // stride, 256 // stride)
        for level, stride in zip(LEVELS, LEVEL_STRIDES, strict=True)
    }
    boxes = torch.tensor([[0.0, 0, 250, 250], [3, 5, 30, 40], [10, 10, 120, 100], [0, 0, 255, 60]])
    ours = BoxHeads(
        channels=4,
        num_classes=1,
        hidden=8,
        batch_size_per_image=8,
        num_levels=len(levels),
        score_threshold=0.0,
        nms_threshold=0.5,
        max_detections=8,
    )
    maps = list(pyramid.values())
    pooled = ours.pooled(maps, row_table(maps, dtype=torch.float32), boxes, torch.zeros(4, dtype=torch.int64))
    theirs = MultiScaleRoIAlign(list(levels), output_size=7, sampling_ratio=2)
    torch.testing.assert_close(pooled, theirs(pyramid, [boxes], [(256, 256)]), atol=1e-6, rtol=0)


# --- losses and detections


def test_labels_count_from_one_inside_the_head() -> None:
    batch = make_batch(counts=(3, 0, 1))
    targets = targets_of(batch)
    assert targets.labels_BG.tolist() == [[1, 2, 3], [0, 0, 0], [1, 0, 0]]
    assert targets.is_real_BG.sum(dim=1).tolist() == [3, 0, 1]
    assert torch.equal(targets.boxes_BG4, batch.boxes_xyxy)


def test_labels_count_from_zero_outside_the_head() -> None:
    detector = build_model(recipe("demo")).eval()
    predictor = detector.head.roi_heads.box_predictor
    with torch.no_grad():
        predictor.cls_score.weight.zero_()
        predictor.cls_score.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))  # the second class, everywhere
        found = detector(make_batch()).predictions
    for row in found:
        assert len(row.labels)
        assert set(row.labels.tolist()) == {1}


@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)])
def test_four_finite_losses_with_gradients_everywhere(counts: tuple[int, ...]) -> None:
    detector = build_model(recipe("demo"))
    losses = detector(make_batch(counts=counts)).losses
    assert list(losses) == LOSSES
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    without = [
        name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []


@pytest.mark.bf16
def test_under_autocast_convolutions_run_in_bf16_and_losses_and_boxes_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector, batch = build_model(recipe("demo")), make_batch()
    seen: dict[str, torch.dtype] = {}
    head = detector.head
    for name, layer in {"conv": head.rpn.head, "fc": head.roi_heads.box_head}.items():
        layer.register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: getattr(out[0][0], "dtype", None)})
        )
    suppressed = head.rpn._suppressed
    monkeypatch.setattr(
        head.rpn,
        "_suppressed",
        lambda boxes, scores, *rest: (
            seen.update(boxes=boxes.dtype, scores=scores.dtype) or suppressed(boxes, scores, *rest)
        ),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector(batch).losses
    assert seen == {
        "conv": torch.bfloat16,
        "fc": torch.bfloat16,
        "boxes": torch.float32,
        "scores": torch.float32,
    }
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.bf16
@pytest.mark.parametrize("seed", [0, 1])
def test_bf16_losses_are_within_two_percent(seed: int) -> None:
    torch.manual_seed(seed)
    detector, batch = build_model(recipe("demo")), make_batch(seed=seed)
    exact = total_loss(detector, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = total_loss(detector, batch)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def total_loss(detector: Model, batch: Batch) -> Tensor:
    torch.manual_seed(0)  # the same anchors and proposals are sampled
    return torch.stack(list(detector(batch).losses.values())).sum()


def test_twenty_steps_on_one_batch_lower_the_loss_and_find_boxes_inside_the_image() -> None:
    detector = build_model(tiny(head=recipe("demo").model.head.model_copy(update={"score_threshold": 0.0})))
    batch = replace(make_batch(), valid_hw=torch.tensor([[96, 128], [64, 100]]))
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.02, momentum=0.9)
    before = total_loss(detector, batch).item()
    for _ in range(20):
        optimizer.zero_grad()
        total_loss(detector, batch).backward()
        optimizer.step()
    assert total_loss(detector, batch).item() < 0.7 * before

    detector.eval()
    with torch.no_grad():
        found = detector(batch).predictions
    assert len(found) == 2
    for row, (height, width) in zip(found, [(96, 128), (64, 100)], strict=True):
        assert isinstance(row, Detections)
        assert 0 < len(row.boxes_xyxy) <= 20
        assert len(row.boxes_xyxy) == len(row.scores) == len(row.labels)
        assert bool((row.scores[:-1] >= row.scores[1:]).all())
        assert set(row.labels.tolist()) <= {0, 1, 2}
        assert row.boxes_xyxy.min() >= 0
        assert row.boxes_xyxy[:, 2].max() <= width
        assert row.boxes_xyxy[:, 3].max() <= height


def test_padding_has_no_influence() -> None:
    detector = build_model(recipe("demo")).eval()
    detector.head.roi_heads.score_threshold = 0.0
    batch = replace(make_batch(), valid_hw=torch.tensor([[64, 96], [64, 96]]))
    scribbled = {name: x.clone() for name, x in batch.modalities.items()}
    for x in scribbled.values():
        x[:, :, 64:] = 255
        x[:, :, :, 96:] = 255
    with torch.no_grad():
        for clean, dirty in zip(
            detector(batch).predictions,
            detector(replace(batch, modalities=scribbled)).predictions,
            strict=True,
        ):
            assert torch.equal(clean.boxes_xyxy, dirty.boxes_xyxy)
            assert torch.equal(clean.scores, dirty.scores)


# --- build


def test_one_seed_gives_one_set_of_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(42)
        states.append(build_model(recipe("demo")).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_single_modality_control_reads_nothing_else() -> None:
    identity = IdentityFusion()
    experiment = tiny(fusion=identity, elsewhere=identity, rgb_modalities=("thermal",))
    detector = build_model(experiment)
    assert len(detector.encoder.aux_stages) == 0
    batch = make_batch()
    losses = detector(replace(batch, modalities={"thermal": batch.modalities["thermal"]})).losses
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"rgb_modalities": ()}, "rgb_modalities must name at least one"),
        ({"aux_modalities": ()}, "aux_modalities is empty, but a stage fuses"),
    ],
)
def test_streams_without_modalities_are_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(tiny(**model))


def test_one_mean_stands_for_all_channels() -> None:
    experiment = apply_overrides(recipe("demo"), {"data.event_channels": 3})
    event = Normalization(mean=(0.25,), std=(0.1, 0.2, 0.4))
    data = experiment.data.model_copy(update={"event": event})
    with torch.device("meta"):
        stream = build_model(experiment.model_copy(update={"data": data})).aux_input
    assert stream.num_channels == {"thermal": 1, "event": 3}
    assert stream.mean.flatten().tolist() == pytest.approx([0.5, 0.25, 0.25, 0.25])
    assert stream.std.flatten().tolist() == pytest.approx([0.225, 0.1, 0.2, 0.4])


def test_a_normalisation_of_the_wrong_length_is_refused() -> None:
    experiment = recipe("demo")
    data: DataConfig = experiment.data.model_copy(update={"rgb": Normalization(mean=(0.5, 0.4), std=(0.2,))})
    with pytest.raises(ConfigError, match=r"data\.rgb must have 3 mean\(s\)"):
        build_model(experiment.model_copy(update={"data": data}))


def test_initial_losses_are_those_of_chance() -> None:
    # Objectness starts at even odds; four classes (with background) start almost equal.
    losses = build_model(recipe("demo"))(make_batch()).losses
    assert losses["loss_objectness"].item() == pytest.approx(math.log(2), abs=0.1)
    assert losses["loss_classifier"].item() == pytest.approx(math.log(4), abs=0.4)


def test_the_model_config_covers_what_is_built() -> None:
    # A stage that is not selected uses `elsewhere`.
    model: ModelConfig = tiny(fusion=GAFFFusion(), fusion_stages=(3,), elsewhere=IdentityFusion()).model
    detector = build_model(tiny(fusion=GAFFFusion(), fusion_stages=(3,), elsewhere=IdentityFusion()))
    names = [type(fusion).__name__ for fusion in detector.encoder.fusions]
    assert names == ["Identity", "Identity", "GAFF", "Identity"]
    assert [model.fusion_at(stage).kind for stage in (1, 2, 3, 4)] == [
        "identity",
        "identity",
        "gaff",
        "identity",
    ]
    assert len(detector.encoder.aux_stages) == 3


# --- removing a modality


def test_an_empty_stream_supports_without() -> None:
    stream = InputStream({})
    with stream.without("thermal"):
        assert stream(make_batch()).shape == (2, 0, 96, 128)


@pytest.mark.parametrize("modality", ["rgb", "thermal", "event"])
def test_without_a_modality_is_as_built_without_it(modality: str) -> None:
    experiment = recipe("demo")
    batch = make_batch()
    whole = build_model(experiment).eval()
    data = experiment.data.model_copy(update={"missing": (modality,)})
    lacking = build_model(experiment.model_copy(update={"data": data})).eval()
    lacking.load_state_dict(whole.state_dict())
    streams = (whole.rgb_input, whole.aux_input), (lacking.rgb_input, lacking.aux_input)
    as_it_is = [stream(batch) for stream in streams[0]]
    with whole.without(modality):
        for stream, other in zip(*streams, strict=True):
            assert torch.equal(stream(batch), other(batch))
        assert torch.equal(whole(batch).predictions[0].boxes_xyxy, lacking(batch).predictions[0].boxes_xyxy)
    for stream, before in zip(streams[0], as_it_is, strict=True):
        assert torch.equal(stream(batch), before), "it is restored"
    assert whole.modalities == ("rgb", "thermal", "event")
    assert modality not in lacking.modalities
