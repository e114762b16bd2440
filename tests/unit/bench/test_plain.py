"""The detector against the plain implementation: losses and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raydet.bench.plain import PlainDetector
from raydet.bench.train_step import random_batch
from raydet.config import Experiment, apply_overrides
from raydet.models.build import build_model
from raydet.recipes import recipe
from raydet.structures import Batch, BoxBatch

IDENTITY = {"kind": "identity"}
CASES: dict[str, dict[str, object]] = {
    "cmx": {},
    "b0": {"model.backbone.variant": "b0"},
    "timm": {"model.backbone.kind": "timm", "model.backbone.name": "test_convnext"},
    "fused flow": {"model.flow": "fused"},
    "gaff": {"model.fusion": {"kind": "gaff"}, "model.fusion_stages": [3, 4]},
    "gaff shared": {
        "model.fusion": {"kind": "gaff", "inter_shared": True, "merge_bottleneck": True},
        "model.elsewhere": IDENTITY,
    },
    "gaff extended": {
        "model.fusion": {"kind": "gaff", "merge_weights": "both", "inter_scales": 3, "out_channels": 24},
    },
    "gaff guided": {
        "model.fusion": {
            "kind": "gaff",
            "se_reduction": None,
            "gated": True,
            "guide_intra": True,
            "guide_inter": True,
        },
    },
    "cross-attention": {"model.fusion": {"kind": "cross_attention"}, "model.fusion_stages": [2, 4]},
    "late": {"model.fusion": {"kind": "late_concat"}},
    "identity": {"model.fusion": IDENTITY, "model.elsewhere": IDENTITY},
    "four levels": {"model.head.pool_level_rois": False},
    "a missing modality": {"data.missing": ["event"]},
}


def experiment_of(case: str) -> Experiment:
    return apply_overrides(
        recipe("demo"), {"data.canvas_hw": [64, 96], "model.backbone.drop_path_rate": 0.4, **CASES[case]}
    )


def batch_of(experiment: Experiment, *, dtype: torch.dtype) -> Batch:
    """Three images: one without a box, one that does not fill the canvas."""
    batch = random_batch(experiment, 3, 4)
    return replace(
        batch,
        modalities={name: x.to(dtype) / 255 for name, x in batch.modalities.items()},
        target=BoxBatch(
            boxes_xyxy=batch.boxes_xyxy.to(dtype) * torch.tensor([1, 0, 0.5], dtype=dtype)[:, None, None],
            labels=batch.labels,
            counts=torch.tensor([4, 0, 2]),
        ),
        valid_hw=torch.tensor([[64, 96], [64, 96], [48, 64]]),
    )


def losses_and_gradients(model: torch.nn.Module, batch: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(7)
    losses = model(batch).losses
    sum(losses.values()).backward()
    gradients = {name.removeprefix("parts."): p.grad for name, p in model.named_parameters()}
    return {name: loss.item() for name, loss in losses.items()}, gradients


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_plain_implementation(case: str) -> None:
    # fp64: in fp32 a ReLU at zero or two equal scores may fall to either side.
    experiment = experiment_of(case)
    detector = build_model(experiment).double()
    plain = PlainDetector(detector, experiment)
    batch = batch_of(experiment, dtype=torch.float64)
    losses, gradients = losses_and_gradients(detector, batch)
    plain_losses, plain_gradients = losses_and_gradients(plain, batch)
    assert losses == pytest.approx(plain_losses, rel=1e-6)
    assert gradients.keys() == plain_gradients.keys()
    floor = 1e-9 * max(gradient.abs().max().item() for gradient in plain_gradients.values())
    for name, expected in plain_gradients.items():
        largest = max(expected.abs().max().item(), floor)
        assert (gradients[name] - expected).abs().max().item() <= 1e-5 * largest, name


@pytest.mark.parametrize("case", ["cmx", "gaff", "identity"])
def test_losses_are_equal_in_fp32(case: str) -> None:
    experiment = experiment_of(case)
    detector = build_model(experiment)
    plain = PlainDetector(detector, experiment)
    batch = batch_of(experiment, dtype=torch.float32)
    losses, _ = losses_and_gradients(detector, batch)
    plain_losses, _ = losses_and_gradients(plain, batch)
    assert losses == pytest.approx(plain_losses, rel=1e-5)


def test_state_dicts_are_interchangeable() -> None:
    experiment = experiment_of("cmx")
    detector, other = build_model(experiment), build_model(experiment)
    plain = PlainDetector(detector, experiment)
    plain.parts.load_state_dict(other.state_dict())
    assert plain.parts.state_dict().keys() == detector.state_dict().keys()
    batch = batch_of(experiment, dtype=torch.float32)
    assert losses_and_gradients(plain, batch)[0] == pytest.approx(
        losses_and_gradients(other, batch)[0], rel=1e-5
    )


def test_the_published_resize_enlarges_the_images() -> None:
    experiment = experiment_of("identity")
    plain = PlainDetector(build_model(experiment), experiment, min_size=128)
    seen: list[torch.Size] = []
    plain.parts.neck.fpn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]["0"].shape))
    losses = plain(random_batch(experiment, 1, 2)).losses
    assert all(loss.isfinite() for loss in losses.values())
    assert seen[0][-2:] == (32, 48)
